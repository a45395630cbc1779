package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/health"
	"github.com/cellvisor/cellvisor/ident"
)

const id = "0123456789abcdef0123456789abcdef"

// sample returns a file that is right; tests break it.
func sample(secret string) string {
	return fmt.Sprintf(`cluster {
  name = "lab"
  id   = %q
}
server {
  name        = "a-1"
  cell        = "a"
  data_dir    = "data"
  slots       = 2
  memory      = "256MiB"
  secret_file = %q
}
listen {
  peer   = "127.0.0.1:7701"
  gossip = "127.0.0.1:7702"
  api    = "unix:///run/x/api.sock"
}
initial "a-1" {
  id     = 1
  cell   = "a"
  peer   = "127.0.0.1:7701"
  gossip = "127.0.0.1:7702"
}
initial "witness-1" {
  id     = 2
  role   = "witness"
  peer   = "127.0.0.1:7711"
  gossip = "127.0.0.1:7712"
}
`, id, secret)
}

func secretFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("  0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestParse(t *testing.T) {
	got, err := Parse("/etc/cv/server.hcl", []byte(sample(secretFile(t))))
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != 1 || got.Name != "a-1" || got.Cell != "a" || got.Role != RoleServer || got.Slots != 2 || got.MemoryBytes != 256*ident.MiB {
		t.Errorf("server: %+v", got)
	}
	if got.DataDir != "/etc/cv/data" {
		t.Errorf("a relative data_dir is taken from the file's directory, got %s", got.DataDir)
	}
	if got.Listen.APIUnix != "/run/x/api.sock" || got.Listen.Pages != "127.0.0.1" {
		t.Errorf("listen: %+v", got.Listen)
	}
	if string(got.Secret) != "0123456789abcdef" {
		t.Errorf("secret %q", got.Secret)
	}
	if len(got.Initial) != 2 || got.Initial[1].Role != RoleWitness || !got.Initial[1].Voter {
		t.Errorf("initial: %+v", got.Initial)
	}
	if got.Timing != DefaultTiming() || got.Nice != -10 || got.Log.Level != "info" {
		t.Errorf("defaults: %+v", got)
	}
}

// Each broken file is refused with the place and what is wrong.
func TestParseErrors(t *testing.T) {
	secret := secretFile(t)
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"syntax", `cell        = "a"`, `cell = "a`, "f.hcl:7:"},
		{"unknown attribute", `slots       = 2`, `slotz = 2`, "f.hcl:9:3: Unsupported argument"},
		{"unknown block", `listen {`, `listem {`, "f.hcl:13:1: Unsupported block type"},
		{"missing block", `cluster {`, `cluster2 {`, `the block "cluster" is missing`},
		{"bad type", `slots       = 2`, `slots = "many"`, "f.hcl:9:11: slots must be a number"},
		{"fraction", `slots       = 2`, `slots = 2.5`, "slots must be a whole number from 1 to 4096, not 2.5"},
		{"zero slots", `slots       = 2`, `slots = 0`, "f.hcl:9:11: slots must be a whole number"},
		{"bad size", `"256MiB"`, `"256 parsecs"`, `f.hcl:10:17: memory: size "256 parsecs" must be`},
		{"tiny memory", `"256MiB"`, `"1KiB"`, "less than 1MiB"},
		{"name and cell", `name        = "a-1"`, `name = "b-1"`, `server "b-1" is in cell "a"`},
		{"server name", `name        = "a-1"`, `name = "a1"`, `server name "a1" must be <cell>-<number>`},
		{"no cell", `cell        = "a"`, ``, "only a witness is in none"},
		{"role", `cell        = "a"`, "cell = \"a\"\n role = \"boss\"", `role "boss" must be`},
		{"witness with slots", `cell        = "a"`, `role = "witness"`, "a witness runs no VMs: remove slots"},
		{"cluster id", id, "abc", `cluster id "abc" must be 32 hexadecimal digits`},
		{"no data dir", `data_dir    = "data"`, ``, "data_dir is missing"},
		{"port", `peer   = "127.0.0.1:7701"`, `peer = "127.0.0.1:99999"`, `port "99999"`},
		{"no port", `gossip = "127.0.0.1:7702"`, `gossip = "127.0.0.1"`, `f.hcl:15:12: gossip: "127.0.0.1" is not host:port`},
		{"no host", `peer   = "127.0.0.1:7701"`, `peer = ":7701"`, "lacks its host"},
		{"shared address", `gossip = "127.0.0.1:7702"`, `gossip = "127.0.0.1:7701"`, "gossip and peer must not share an address"},
		{"long socket", `unix:///run/x/api.sock`, "/" + strings.Repeat("x", 120), "Linux allows 107"},
		{"own block differs", "initial \"a-1\" {\n  id     = 1\n  cell   = \"a\"\n  peer   = \"127.0.0.1:7701\"", "initial \"a-1\" {\n  id = 1\n  cell = \"a\"\n  peer = \"127.0.0.1:7709\"",
			`has peer address "127.0.0.1:7709", the rest of the file says "127.0.0.1:7701"`},
		{"same id", `id     = 2`, `id     = 1`, `have the same id 1`},
		{"zero id", `id     = 2`, `id     = 0`, "id must be a whole number above 0"},
		{"no id", `id     = 2`, ``, "id is missing"},
		{"twice", `initial "witness-1" {`, `initial "a-1" {`, "has an initial block in line 18 already"},
		{"same address", `"127.0.0.1:7711"`, `"127.0.0.1:7701"`, "have the same address 127.0.0.1:7701"},
		{"witness in a cell", `role   = "witness"`, "role = \"witness\"\n  cell = \"a\"", "a witness belongs to no cell"},
		{"witness without vote", `role   = "witness"`, "role = \"witness\"\n  voter = false", "a witness is there to vote"},
		{"both ways", `initial "witness-1" {`, "join = [\"127.0.0.1:1\"]\ninitial \"witness-1\" {", "not both"},
		{"no secret", secret, short, "holds 3 bytes, at least 16 are needed"},
		{"missing secret", secret, "/nonexistent/secret", "f.hcl:11:17: secret_file:"},
		{"half a certificate", `listen {`, "tls {\n ca = \"ca.crt\"\n cert = \"a-1.crt\"\n}\nlisten {", `block "tls": key is missing`},
		{"switch", `listen {`, "security {\n jail = \"maybe\"\n}\nlisten {", `f.hcl:14:9: jail "maybe" must be one of off`},
		{"control groups", `listen {`, "security {\n cgroup = \"somewhere\"\n}\nlisten {", `f.hcl:14:11: cgroup "somewhere" must be "off" or the path`},
		{"API without certificates", `listen {`, "listen {\n  api_tcp = \"127.0.0.1:7700\"", `the block "tls" is missing: api_tcp asks`},
		{"health policy", `listen {`, "health {\n policy = \"maybe\"\n}\nlisten {", `policy "maybe" must be one of off, suggest, auto`},
		{"health rule", `listen {`, "health {\n rule \"x\" {\n  limit = 0\n }\n}\nlisten {", "measure is missing"},
		{"second block", `listen {`, "cluster {\n id = \"x\"\n}\nlisten {", `a second block "cluster"; the first is in line 1`},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := strings.Replace(sample(secret), c.old, c.new, 1)
			if src == sample(secret) {
				t.Fatalf("%q is not in the sample", c.old)
			}
			_, err := Parse("f.hcl", []byte(src))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %q in it", err, c.want)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "f.hcl") {
				t.Errorf("the error does not begin with the file: %v", err)
			}
		})
	}
}

// Without a secret, peers are trusted: on the loopback interface only.
func TestSecretOffLoopback(t *testing.T) {
	src := strings.Replace(sample("x"), "  secret_file = \"x\"\n", "", 1)
	if _, err := Parse("f.hcl", []byte(src)); err != nil {
		t.Errorf("on loopback: %v", err)
	}
	src = strings.ReplaceAll(src, `"127.0.0.1:7701"`, `"10.0.0.1:7701"`)
	if _, err := Parse("f.hcl", []byte(src)); err == nil || !strings.Contains(err.Error(), "secret_file is missing") || !strings.Contains(err.Error(), `block "tls" is missing`) {
		t.Errorf("off loopback: %v", err)
	}
}

// What Format writes, Parse reads back.
func TestFormatRoundTrip(t *testing.T) {
	secret := secretFile(t)
	want, err := Parse("/etc/cv/server.hcl", []byte(sample(secret)))
	if err != nil {
		t.Fatal(err)
	}
	want.Timing.LeaseLength *= 2
	want.Drills = true
	want.Health.Policy, want.Health.File, want.Health.Command = PolicyAuto, "/run/health", []string{"/bin/check", "-q"}
	want.Health.Rules[0].Limit = 7
	want.Health.Rules = append(want.Health.Rules, health.Rule{Name: "fans", Measure: "fan", Kind: health.Level, Limit: 2, Span: 5 * ident.Second, Act: health.Drain})
	want.TLS = TLS{CA: "/t/ca.crt", Cert: "/t/a-1.crt", Key: "/t/a-1.key"}
	want.PageEncryption, want.Jail, want.WorkerUser, want.Cgroup, want.AuditBytes = false, false, "kvm-workers", "/sys/fs/cgroup/cellvisor", 64*ident.MiB
	got, err := Parse("/etc/cv/server.hcl", Format(want))
	if err != nil {
		t.Fatalf("%v\n%s", err, Format(want))
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestLoadRefusesWhatIsNoFile(t *testing.T) {
	if _, err := Load(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Load("/nonexistent.hcl"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]ident.Bytes{
		"0": 0, "4096": 4096, "64MiB": 64 * ident.MiB, "64m": 64 * ident.MiB, "1.5GiB": 1536 * ident.MiB, "2 GB": 2 * ident.GiB, "1T": 1024 * ident.GiB,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1..5G", "9999999999T", "1e9", "12 parsecs", "1.5.5"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %v, want an error", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample("/dev/null"))
	f.Add(`server { name = 1 + "x" }`)
	f.Add(`join = [null, ["x"]]`)
	f.Fuzz(func(t *testing.T, src string) {
		cfg, err := Parse("f.hcl", []byte(src))
		if err == nil && (cfg.Name == "" || cfg.ClusterID == "" || cfg.DataDir == "") {
			t.Errorf("accepted an incomplete file: %+v", cfg)
		}
	})
}
