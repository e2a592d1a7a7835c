"""Text on disk in, the same batch of tokens at step k out: on any mesh, in any process, after any restart."""
