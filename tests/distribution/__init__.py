"""What the exporter is run by: an image, a systemd unit, Kubernetes manifests. None needs its engine here."""
