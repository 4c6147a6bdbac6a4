"""What a sandbox boots from: an image is a manifest that names layers; a layer is a read-only tree on disk."""
