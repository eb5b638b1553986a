package validate

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	resourcev1 "k8s.io/api/resource/v1"
	migrationv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// DeviceClass checks a new or changed class of devices; its CEL selectors are
// compiled elsewhere.
func DeviceClass(c *resourcev1.DeviceClass) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, false, NameDNSSubdomain, meta())
	errs = append(errs, deviceSelectors(c.Spec.Selectors, spec().Child("selectors"))...)
	if limit := resourcev1.DeviceConfigMaxSize; len(c.Spec.Config) > limit {
		errs = append(errs, field.TooMany(spec().Child("config"), len(c.Spec.Config), limit))
	}
	for i := range c.Spec.Config {
		errs = append(errs, deviceConfig(&c.Spec.Config[i].DeviceConfiguration, spec().Child("config").Index(i))...)
	}
	if n := c.Spec.ExtendedResourceName; n != nil && !isExtendedResource(*n) {
		errs = append(errs, field.Invalid(spec().Child("extendedResourceName"), *n, "must be a valid extended resource name"))
	}
	return errs
}

// DeviceClassUpdate checks an update of a class of devices.
func DeviceClassUpdate(new, old *resourcev1.DeviceClass) field.ErrorList {
	return append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), DeviceClass(new)...)
}

func deviceSelectors(list []resourcev1.DeviceSelector, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if limit := resourcev1.DeviceSelectorsMaxSize; len(list) > limit {
		errs = append(errs, field.TooMany(path, len(list), limit))
	}
	for i, s := range list {
		p := path.Index(i).Child("cel")
		if s.CEL == nil {
			errs = append(errs, field.Required(p, ""))
		} else if limit := resourcev1.CELSelectorExpressionMaxLength; len(s.CEL.Expression) > limit {
			errs = append(errs, field.TooLong(p.Child("expression"), "", limit))
		} else {
			errs = append(errs, required(s.CEL.Expression, p.Child("expression"))...)
		}
	}
	return errs
}

func deviceConfig(c *resourcev1.DeviceConfiguration, path *field.Path) field.ErrorList {
	p := path.Child("opaque")
	if c.Opaque == nil {
		return field.ErrorList{field.Required(p, "")}
	}
	errs := csiDriverName(c.Opaque.Driver, p.Child("driver"))
	if len(c.Opaque.Parameters.Raw) == 0 {
		errs = append(errs, field.Required(p.Child("parameters"), ""))
	} else if limit := resourcev1.OpaqueParametersMaxLength; len(c.Opaque.Parameters.Raw) > limit {
		errs = append(errs, field.TooLong(p.Child("parameters"), "", limit))
	}
	return errs
}

// ResourceClaim checks a new claim for devices.
func ResourceClaim(c *resourcev1.ResourceClaim) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, deviceClaim(&c.Spec.Devices, spec().Child("devices"))...)
}

// ResourceClaimUpdate checks an update of a claim: its spec stays.
func ResourceClaimUpdate(new, old *resourcev1.ResourceClaim) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, unchanged(new.Spec, old.Spec, spec())...)
	return append(errs, deviceClaim(&new.Spec.Devices, spec().Child("devices"))...)
}

// ResourceClaimStatusUpdate checks an update of a claim's status: an allocation
// stays until it is taken back, and consumers are at most 256 and differ.
func ResourceClaimStatusUpdate(new, old *resourcev1.ResourceClaim) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	p := status().Child("reservedFor")
	if limit := resourcev1.ResourceClaimReservedForMaxSize; len(new.Status.ReservedFor) > limit {
		errs = append(errs, field.TooMany(p, len(new.Status.ReservedFor), limit))
	}
	uids := sets.New[string]()
	for i, r := range new.Status.ReservedFor {
		errs = append(errs, required(r.Resource, p.Index(i).Child("resource"))...)
		errs = append(errs, required(r.Name, p.Index(i).Child("name"))...)
		errs = append(errs, required(string(r.UID), p.Index(i).Child("uid"))...)
		if uids.Has(string(r.UID)) {
			errs = append(errs, field.Duplicate(p.Index(i), r.UID))
		}
		uids.Insert(string(r.UID))
	}
	if len(new.Status.ReservedFor) > 0 && new.Status.Allocation == nil {
		errs = append(errs, field.Forbidden(p, "may not be specified when `allocated` is not set"))
	}
	if old.Status.Allocation != nil && new.Status.Allocation != nil {
		errs = append(errs, unchanged(new.Status.Allocation, old.Status.Allocation, status().Child("allocation"))...)
	}
	return errs
}

// ResourceClaimTemplate checks a new template of claims.
func ResourceClaimTemplate(t *resourcev1.ResourceClaimTemplate) field.ErrorList {
	errs := ObjectMeta(&t.ObjectMeta, true, NameDNSSubdomain, meta())
	errs = append(errs, labels(t.Spec.Labels, spec().Child("metadata", "labels"))...)
	errs = append(errs, annotations(t.Spec.Annotations, spec().Child("metadata", "annotations"))...)
	return append(errs, deviceClaim(&t.Spec.Spec.Devices, spec().Child("spec", "devices"))...)
}

// ResourceClaimTemplateUpdate checks an update of a template: its spec stays.
func ResourceClaimTemplateUpdate(new, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, unchanged(new.Spec, old.Spec, spec())...)
}

func deviceClaim(c *resourcev1.DeviceClaim, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	rp := path.Child("requests")
	if limit := resourcev1.DeviceRequestsMaxSize; len(c.Requests) > limit {
		errs = append(errs, field.TooMany(rp, len(c.Requests), limit))
	}
	names := sets.New[string]()
	for i := range c.Requests {
		r, p := &c.Requests[i], rp.Index(i)
		errs = append(errs, requestName(r.Name, p.Child("name"))...)
		if names.Has(r.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), r.Name))
		}
		names.Insert(r.Name)
		switch {
		case r.Exactly != nil && len(r.FirstAvailable) > 0:
			errs = append(errs, field.Invalid(p, "", "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"))
		case r.Exactly != nil:
			e, ep := r.Exactly, p.Child("exactly")
			errs = append(errs, deviceAmount(e.DeviceClassName, e.AllocationMode, e.Count, ep)...)
			errs = append(errs, deviceSelectors(e.Selectors, ep.Child("selectors"))...)
		case len(r.FirstAvailable) > 0:
			sub := sets.New[string]()
			if limit := resourcev1.FirstAvailableDeviceRequestMaxSize; len(r.FirstAvailable) > limit {
				errs = append(errs, field.TooMany(p.Child("firstAvailable"), len(r.FirstAvailable), limit))
			}
			for j := range r.FirstAvailable {
				s, sp := &r.FirstAvailable[j], p.Child("firstAvailable").Index(j)
				errs = append(errs, requestName(s.Name, sp.Child("name"))...)
				if sub.Has(s.Name) {
					errs = append(errs, field.Duplicate(sp.Child("name"), s.Name))
				}
				sub.Insert(s.Name)
				names.Insert(r.Name + "/" + s.Name)
				errs = append(errs, deviceAmount(s.DeviceClassName, s.AllocationMode, s.Count, sp)...)
				errs = append(errs, deviceSelectors(s.Selectors, sp.Child("selectors"))...)
			}
		default:
			errs = append(errs, field.Required(p, "exactly one of `exactly` or `firstAvailable` is required"))
		}
	}
	known := func(list []string, p *field.Path) {
		for i, name := range list {
			if !names.Has(name) {
				errs = append(errs, field.Invalid(p.Index(i), name, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"))
			}
		}
	}
	for i, constraint := range c.Constraints {
		known(constraint.Requests, path.Child("constraints").Index(i).Child("requests"))
	}
	for i := range c.Config {
		p := path.Child("config").Index(i)
		known(c.Config[i].Requests, p.Child("requests"))
		errs = append(errs, deviceConfig(&c.Config[i].DeviceConfiguration, p)...)
	}
	return errs
}

func requestName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return dnsLabel(name, path)
}

func deviceAmount(class string, mode resourcev1.DeviceAllocationMode, count int64, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if class == "" {
		errs = append(errs, field.Required(path.Child("deviceClassName"), ""))
	} else {
		errs = append(errs, dnsSubdomain(class, path.Child("deviceClassName"))...)
	}
	switch mode {
	case resourcev1.DeviceAllocationModeAll:
		if count != 0 {
			errs = append(errs, field.Invalid(path.Child("count"), count, fmt.Sprintf("must not be specified when allocationMode is '%s'", mode)))
		}
	case resourcev1.DeviceAllocationModeExactCount:
		errs = append(errs, positive(count, path.Child("count"))...)
	default:
		errs = append(errs, field.NotSupported(path.Child("allocationMode"), mode, []resourcev1.DeviceAllocationMode{resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount}))
	}
	return errs
}

// ResourceSlice checks the shape of a driver's offer: names, one kind of node
// selection, distinct devices. Attributes, capacities, counters and taints of
// devices are not checked.
func ResourceSlice(s *resourcev1.ResourceSlice) field.ErrorList {
	errs := ObjectMeta(&s.ObjectMeta, false, NameDNSSubdomain, meta())
	errs = append(errs, csiDriverName(s.Spec.Driver, spec().Child("driver"))...)
	pool := spec().Child("pool")
	if s.Spec.Pool.Name == "" {
		errs = append(errs, field.Required(pool.Child("name"), ""))
	} else {
		for part := range strings.SplitSeq(s.Spec.Pool.Name, "/") {
			errs = append(errs, invalid(pool.Child("name"), part, validation.IsDNS1123Subdomain(part))...)
		}
	}
	errs = append(errs, positive(s.Spec.Pool.ResourceSliceCount, pool.Child("resourceSliceCount"))...)
	errs = append(errs, nonNegative(s.Spec.Pool.Generation, pool.Child("generation"))...)
	count := 0
	for _, set := range []bool{s.Spec.NodeName != nil, s.Spec.NodeSelector != nil, s.Spec.AllNodes != nil, s.Spec.PerDeviceNodeSelection != nil} {
		if set {
			count++
		}
	}
	const one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
	if count == 0 && len(s.Spec.SharedCounters) == 0 {
		errs = append(errs, field.Required(spec(), one))
	} else if count > 1 {
		errs = append(errs, field.Invalid(spec(), "", one+", but multiple fields are set"))
	}
	if n := s.Spec.NodeName; n != nil {
		errs = append(errs, invalid(spec().Child("nodeName"), *n, NameDNSSubdomain(*n, false))...)
	}
	if s.Spec.NodeSelector != nil {
		errs = append(errs, nodeSelector(s.Spec.NodeSelector, spec().Child("nodeSelector"))...)
	}
	dp := spec().Child("devices")
	if limit := resourcev1.ResourceSliceMaxDevices; len(s.Spec.Devices) > limit {
		errs = append(errs, field.TooMany(dp, len(s.Spec.Devices), limit))
	}
	seen := sets.New[string]()
	for i := range s.Spec.Devices {
		name := s.Spec.Devices[i].Name
		errs = append(errs, dnsLabel(name, dp.Index(i).Child("name"))...)
		if seen.Has(name) {
			errs = append(errs, field.Duplicate(dp.Index(i).Child("name"), name))
		}
		seen.Insert(name)
	}
	return errs
}

// ResourceSliceUpdate checks an update of an offer: driver, pool name and node stay.
func ResourceSliceUpdate(new, old *resourcev1.ResourceSlice) field.ErrorList {
	errs := append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), ResourceSlice(new)...)
	errs = append(errs, unchanged(new.Spec.Driver, old.Spec.Driver, spec().Child("driver"))...)
	errs = append(errs, unchanged(new.Spec.NodeName, old.Spec.NodeName, spec().Child("nodeName"))...)
	errs = append(errs, unchanged(new.Spec.AllNodes, old.Spec.AllNodes, spec().Child("allNodes"))...)
	return append(errs, unchanged(new.Spec.Pool.Name, old.Spec.Pool.Name, spec().Child("pool", "name"))...)
}

// ClusterTrustBundle checks a new bundle of certificates.
func ClusterTrustBundle(b *certificatesv1.ClusterTrustBundle) field.ErrorList {
	errs := ObjectMeta(&b.ObjectMeta, false, trustBundleName(b.Spec.SignerName), meta())
	if b.Spec.SignerName != "" {
		errs = append(errs, signerName(b.Spec.SignerName, spec().Child("signerName"))...)
	}
	return append(errs, trustAnchors(b.Spec.TrustBundle, spec().Child("trustBundle"))...)
}

func trustAnchors(text string, path *field.Path) field.ErrorList {
	const shown = "<value omitted>"
	if limit := 1024 * 1024; len(text) > limit {
		return field.ErrorList{field.TooLong(path, "", limit)}
	}
	var errs field.ErrorList
	blocks, seen := 0, map[string]int{}
	for rest := []byte(text); ; blocks++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			errs = append(errs, field.Invalid(path, shown, fmt.Sprintf("entry %d has bad block type: %v", blocks, block.Type)))
			continue
		}
		if len(block.Headers) != 0 {
			errs = append(errs, field.Invalid(path, shown, fmt.Sprintf("entry %d has PEM block headers", blocks)))
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			errs = append(errs, field.Invalid(path, shown, fmt.Sprintf("entry %d does not parse as X.509", blocks)))
			continue
		}
		if !cert.IsCA {
			errs = append(errs, field.Invalid(path, shown, fmt.Sprintf("entry %d does not have the CA bit set", blocks)))
		}
		if first, dup := seen[string(cert.Raw)]; dup {
			errs = append(errs, field.Invalid(path, shown, fmt.Sprintf("duplicate trust anchor (indices [%d %d])", first, blocks)))
		}
		seen[string(cert.Raw)] = blocks
	}
	if blocks == 0 {
		errs = append(errs, field.Invalid(path, shown, "at least one trust anchor must be provided"))
	}
	return errs
}

// ClusterTrustBundleUpdate checks an update of a bundle: its signer stays.
func ClusterTrustBundleUpdate(new, old *certificatesv1.ClusterTrustBundle) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, ClusterTrustBundle(new)...)
	return append(errs, unchanged(new.Spec.SignerName, old.Spec.SignerName, spec().Child("signerName"))...)
}

// StorageVersionMigration checks a new migration.
func StorageVersionMigration(m *migrationv1.StorageVersionMigration) field.ErrorList {
	errs := ObjectMeta(&m.ObjectMeta, false, NameDNSSubdomain, meta())
	return append(errs, required(m.Spec.Resource.Resource, spec().Child("resource", "resource"))...)
}

// StorageVersionMigrationUpdate checks an update of a migration: its resource stays.
func StorageVersionMigrationUpdate(new, old *migrationv1.StorageVersionMigration) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, unchanged(new.Spec.Resource, old.Spec.Resource, spec().Child("resource"))...)
}
