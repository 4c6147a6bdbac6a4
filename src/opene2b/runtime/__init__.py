"""What isolates a sandbox. `protocol` is the ability, `registry` finds the driver by name, one folder per driver.

A *runtime* starts and ends sandboxes on one machine; a *spec* is what to run; a *handle* is plain
JSON-able data that names what runs, good enough to re-adopt it after the agent was restarted.
"""
