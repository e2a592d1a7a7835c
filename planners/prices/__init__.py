"""What a plan costs on a machine: seconds, bytes on links, bytes of memory, for many candidates at once."""
