"""The run: settings, data, compiled rounds, loop, checkpoint, folder."""
