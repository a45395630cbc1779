package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Distances between CPUs: what they share decides what a vCPU that goes from one to the other finds in its caches.
const (
	sameCPU uint8 = iota
	sameCache
	sameNode
	sameServer
)

// slotDistances tells how far the CPUs of slots are from each other: whether they share the last level of cache, the memory node, or only the server.
// What sysfs does not tell counts as far.
func slotDistances(sys string, cpus []uint16) [][]uint8 {
	cache, node := make([]string, len(cpus)), make([]string, len(cpus))
	for i, c := range cpus {
		dir := filepath.Join(sys, "devices/system/cpu", fmt.Sprintf("cpu%d", c))
		cache[i], node[i] = lastCache(dir), memoryNode(dir)
	}
	out := make([][]uint8, len(cpus))
	for i := range cpus {
		out[i] = make([]uint8, len(cpus))
		for j := range cpus {
			switch {
			case cpus[i] == cpus[j]:
				out[i][j] = sameCPU
			case cache[i] != "" && cache[i] == cache[j]:
				out[i][j] = sameCache
			case node[i] != "" && node[i] == node[j]:
				out[i][j] = sameNode
			default:
				out[i][j] = sameServer
			}
		}
	}
	return out
}

// lastCache names a CPU's last level of cache by the CPUs that share it, "" if it is not known.
func lastCache(dir string) string {
	indexes, _ := filepath.Glob(filepath.Join(dir, "cache", "index*")) // the pattern is well formed
	name, highest := "", 0
	for _, index := range indexes {
		level, err := strconv.Atoi(read(filepath.Join(index, "level")))
		if shared := read(filepath.Join(index, "shared_cpu_list")); err == nil && level > highest && shared != "" {
			name, highest = fmt.Sprintf("L%d %s", level, shared), level
		}
	}
	return name
}

// memoryNode names a CPU's memory node, "" if it is not known.
func memoryNode(dir string) string {
	nodes, _ := filepath.Glob(filepath.Join(dir, "node[0-9]*"))
	if len(nodes) != 1 {
		return ""
	}
	return filepath.Base(nodes[0])
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
