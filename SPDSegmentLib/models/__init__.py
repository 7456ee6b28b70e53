"""Model bundles and base weights: manifest, checksums, download, license. Free of torch."""
