// Package mem is the page protocol: it keeps the memory of a virtual machine coherent over the servers that it spans.
package mem
