"""The machines a plan runs on: topology, presets, files, measured tables, device order."""
