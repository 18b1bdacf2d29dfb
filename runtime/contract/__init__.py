"""What every layer must agree on: tensor and state specs, the manifest, solver tableaus. numpy and stdlib."""
