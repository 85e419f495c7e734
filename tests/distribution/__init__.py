"""Tests of the image, systemd unit, Compose file and Kubernetes manifests, without their engines."""
