"""The verbs of `odestream` that belong to the runtime, one file each."""
