package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/pflag"

	"proa.dev/apiserver/audit"
	"proa.dev/cluster"
	core "proa.dev/server"
)

// apiFlags are the API server's own flags under upstream's names.
func apiFlags(f *pflag.FlagSet, a *cluster.API) {
	f.StringVar(&a.AuditPolicyFile, "audit-policy-file", "", "audit policy: what is recorded of requests")
	f.StringVar(&a.AuditLogFile, "audit-log-path", "", "file of the audit log; - is the server's log")
	f.StringVar(&a.AuditWebhookFile, "audit-webhook-config-file", "", "kubeconfig of the service that gets audit events")
	f.StringVar(&a.EncryptionFile, "encryption-provider-config", "", "EncryptionConfiguration (default: Secrets are sealed with the cluster's own key)")
	f.StringVar(&a.AuthenticationFile, "authentication-config", "", "AuthenticationConfiguration: OIDC issuers, anonymous requests")
	f.StringVar(&a.AuthorizationFile, "authorization-config", "", "AuthorizationConfiguration (default: Node, RBAC)")
	f.StringVar(&a.AdmissionFile, "admission-control-config-file", "", "AdmissionConfiguration: PodSecurity, EventRateLimit, PodNodeSelector")
	f.StringSliceVar(&a.EnableAdmission, "enable-admission-plugins", nil, "admission plugins that are on besides the default ones")
	f.StringSliceVar(&a.DisableAdmission, "disable-admission-plugins", nil, "admission plugins that are off")
	f.StringSliceVar(&a.Controllers, "controllers", nil, "controllers that run: *, name, -name (default: all)")
}

// beside makes the names of files absolute: the server runs in another directory.
func beside(dir string, files []*string) error {
	for _, f := range files {
		if *f == "" || *f == "-" || filepath.IsAbs(*f) {
			continue
		}
		path, err := filepath.Abs(filepath.Join(dir, *f))
		if err != nil {
			return err
		}
		*f = path
	}
	return nil
}

// pickAPI puts what flags say over what the file of settings says.
func pickAPI(to *cluster.API, flags cluster.API) error {
	if err := beside(".", flags.Files()); err != nil {
		return err
	}
	from := flags.Files()
	for i, f := range to.Files() {
		if *from[i] != "" {
			*f = *from[i]
		}
	}
	for _, l := range []struct {
		to   *[]string
		from []string
	}{{&to.EnableAdmission, flags.EnableAdmission}, {&to.DisableAdmission, flags.DisableAdmission}, {&to.Controllers, flags.Controllers}} {
		if l.from != nil {
			*l.to = l.from
		}
	}
	told := to.AuditLogFile != "" || to.AuditWebhookFile != ""
	switch {
	case to.AuditPolicyFile != "" && !told:
		return fmt.Errorf("audit policy %q: nobody is told; name a place with --audit-log-path or --audit-webhook-config-file", to.AuditPolicyFile)
	case told && to.AuditPolicyFile == "":
		return errors.New("audit log: without a policy nothing is recorded; name one with --audit-policy-file")
	}
	return nil
}

// tellAPI puts the settings into the server's configuration.
func tellAPI(a cluster.API, c *core.Config) {
	c.Audit = audit.Config{PolicyFile: a.AuditPolicyFile, LogPath: a.AuditLogFile, WebhookConfigFile: a.AuditWebhookFile}
	c.EncryptionFile = a.EncryptionFile
	c.Access.AuthenticationFile, c.Access.AuthorizationFile = a.AuthenticationFile, a.AuthorizationFile
	c.AdmissionFile = a.AdmissionFile
	c.EnableAdmission, c.DisableAdmission, c.Controllers = a.EnableAdmission, a.DisableAdmission, a.Controllers
}
