"""Model bundles and base weights: manifest, checksums, download, licence. Free of torch."""
