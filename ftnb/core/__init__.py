"What every other floor stands on: errors, display, files, the machine."
