// Package wire defines what processes say to each other, and how it is put into bytes: versioned codecs with size limits. It is floor 1:
// pure. Every decoder takes hostile input: it returns an error and never panics, and never allocates more than its limit.
package wire
