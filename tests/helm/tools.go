//go:build tools

// Package tools pins Helm and what it is built from; go.sum has the checksums.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
