package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// guestScript begins what runs beside a cluster inside.
const guestScript = `stty echo; export CELLVISOR_DIR=/tmp/lab PATH=/bin:/
cellvisor up --detach --slow 16 --memory 600MiB --timeout 3m || exit 1
`

// guest starts a cluster in the outer machine, and on it a guest whose console is then here, or a script or a shell beside it.
func (b *bed) guest() error {
	if err := goTool("build", "-trimpath", "-o", b.programPath(), "./cmd/cellvisor"); err != nil {
		return err
	}
	files := map[string]string{"cellvisor": b.programPath()}
	script := guestScript
	switch {
	case b.kernel != "":
		files["kernel"] = b.kernel
		run := "cellvisor vm run guest --kernel /kernel --cpu x86-64-v2 --memory 512MiB --cmdline " + quoted(b.args)
		if b.initrd != "" {
			files["initrd"] = b.initrd
			run += " --initrd /initrd"
		}
		script += run + " || exit 1\n"
		if b.script == "" {
			script += "cellvisor vm console guest --attach --offset 0\n"
		}
	case b.script == "":
		script += "echo 'A cluster of cells a, b, c runs: try cellvisor status. The kernels are in /bed. exit ends all.'; sh -i\n"
	}
	if b.script != "" {
		files["script"] = b.script
		script += "sh /script\n"
	}
	return b.outer(script, files, nil)
}

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// show prints what comes as it comes, and returns the status that was among it.
func show(out io.Reader) string {
	var tail []byte
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		_, _ = os.Stdout.Write(buf[:n])
		if tail = append(tail, buf[:n]...); len(tail) > len(buf) {
			tail = tail[len(tail)-len(buf):]
		}
		if err != nil {
			return readLines(bytes.NewReader(tail), func(string) {})
		}
	}
}

// runsRing0 tells why this machine cannot run the cases by itself: a stock kernel needs a processor that runs a guest's ring 0.
func runsRing0() error {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("the cases cannot run directly on this machine: %w; leave BED=none out to run them in the nested bed", err)
	}
	_ = kvm.Close()
	for _, word := range strings.Fields(string(text)) {
		if word == "vmx" || word == "svm" {
			return nil
		}
	}
	return errors.New("the cases cannot run directly on this machine: its processor has neither VT-x nor SVM, so ring 0 of a guest is emulated and a stock kernel does not boot; leave BED=none out to run them in the nested bed")
}
