package image

import (
	"errors"
	"fmt"
	"strings"
)

// ErrReference is under every error about the form of a reference.
var ErrReference = errors.New("invalid reference format")

// A Reference is a name in its parts. Tag is empty when Digest is set: the
// digest alone says which image it is.
type Reference struct {
	Domain string // "docker.io", "reg.example:5000"
	Path   string // "library/nginx"
	Tag    string
	Digest string // "sha256:" and 64 lower-case hex digits
}

// Repository returns domain and path.
func (r Reference) Repository() string { return r.Domain + "/" + r.Path }

// String returns the full name.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Repository() + "@" + r.Digest
	}
	return r.Repository() + ":" + r.Tag
}

const (
	defaultDomain = "docker.io"
	maxNameLength = 255
	maxTagLength  = 128
)

// Normalize returns the full name of what a user wrote: without a registry it
// is docker.io, without a namespace there it is library, without a tag latest;
// a digest makes a tag void.
func Normalize(ref string) (string, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

// ParseReference takes a reference apart by the grammar of the distribution
// project and completes it as Normalize says.
func ParseReference(ref string) (Reference, error) {
	bad := func(cause string) (Reference, error) {
		shown := ref
		if len(shown) > 300 {
			shown = shown[:300] + "…"
		}
		return Reference{}, fmt.Errorf("parse image name %q: %w: %s", shown, ErrReference, cause)
	}
	if ref == "" {
		return bad("it is empty")
	}
	name, digest, pinned := strings.Cut(ref, "@")
	if pinned {
		if cause := digestProblem(digest); cause != "" {
			return bad(cause)
		}
	}
	tag, tagged := "", false
	if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.Contains(name[i:], "/") {
		name, tag, tagged = name[:i], name[i+1:], true
		if cause := tagProblem(tag); cause != "" {
			return bad(cause)
		}
	}
	if isHex(name, 64) {
		return bad("64 hex digits are an ID, not a name")
	}

	domain, path := defaultDomain, name
	if first, rest, found := strings.Cut(name, "/"); found &&
		(strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first) {
		domain, path = first, rest
		if cause := domainProblem(domain); cause != "" {
			return bad(cause)
		}
	}
	if domain == "index.docker.io" {
		domain = defaultDomain
	}
	if cause := pathProblem(path); cause != "" {
		return bad(cause)
	}
	if domain == defaultDomain && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	if len(domain)+1+len(path) > maxNameLength {
		return bad("the name is longer than 255 characters")
	}
	r := Reference{Domain: domain, Path: path, Tag: tag, Digest: digest}
	switch {
	case pinned:
		r.Tag = ""
	case !tagged:
		r.Tag = "latest"
	}
	return r, nil
}

func digestProblem(d string) string {
	algorithm, hex, found := strings.Cut(d, ":")
	switch {
	case !found || algorithm == "" || hex == "":
		return "after @ a digest such as sha256:… is expected"
	case algorithm != "sha256":
		return "the digest's algorithm must be sha256"
	case !isHex(hex, 64):
		return "a sha256 digest has 64 lower-case hex digits"
	}
	return ""
}

func tagProblem(tag string) string {
	if tag == "" {
		return "the tag after : is empty"
	}
	if len(tag) > maxTagLength {
		return "the tag is longer than 128 characters"
	}
	for i := range len(tag) {
		c := tag[i]
		if !(alnum(c) || upper(c) || c == '_' || i > 0 && (c == '.' || c == '-')) {
			return "a tag is made of letters, digits, _, . and -, and does not begin with . or -"
		}
	}
	return ""
}

func domainProblem(domain string) string {
	const cause = "the registry must be a host name or address with an optional port"
	host, port, found := domain, "", false
	if strings.HasPrefix(domain, "[") {
		end := strings.IndexByte(domain, ']')
		if end < 0 {
			return cause
		}
		inside := domain[1:end]
		if inside == "" || strings.Trim(inside, "0123456789abcdefABCDEF:") != "" {
			return cause
		}
		if rest := domain[end+1:]; rest != "" {
			if rest[0] != ':' || !digits(rest[1:]) {
				return cause
			}
		}
		return ""
	}
	if host, port, found = strings.Cut(domain, ":"); found && !digits(port) {
		return cause
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return cause
		}
		for i := range len(label) {
			if c := label[i]; !alnum(c) && !upper(c) && c != '-' {
				return cause
			}
		}
	}
	return ""
}

func pathProblem(path string) string {
	if strings.ToLower(path) != path {
		return "the repository must be lower case"
	}
	for part := range strings.SplitSeq(path, "/") {
		if cause := pathPartProblem(part); cause != "" {
			return cause
		}
	}
	return ""
}

// pathPartProblem checks runs of letters and digits with one separator between
// each two: a dot, one or two underscores, or any number of dashes.
func pathPartProblem(part string) string {
	const cause = "each part of the repository is made of lower-case letters and digits, joined by single . _ __ or dashes"
	if part == "" || !alnum(part[0]) || !alnum(part[len(part)-1]) {
		return cause
	}
	for i := 0; i < len(part); {
		if alnum(part[i]) {
			i++
			continue
		}
		start := i
		for i < len(part) && !alnum(part[i]) {
			i++
		}
		switch run := part[start:i]; {
		case run == ".", run == "_", run == "__":
		case strings.Trim(run, "-") == "":
		default:
			return cause
		}
	}
	return ""
}

func alnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
func upper(c byte) bool { return 'A' <= c && c <= 'Z' }

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// isHex says whether s is n lower-case hex digits; n 0 means any number.
func isHex(s string, n int) bool {
	return s != "" && (n == 0 || len(s) == n) && strings.Trim(s, "0123456789abcdef") == ""
}

// isDigest says whether s is a well-formed sha256 digest; only such strings
// ever become file names.
func isDigest(s string) bool { return digestProblem(s) == "" }

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }
