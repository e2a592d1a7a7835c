"""Saving and restoring a run: by tensor name, verified, onto any mesh.

- `store.Store`          save, latest, restore
- `schedule.Schedule`    when to save, by steps or by seconds
- `manifest`             what makes a checkpoint complete, and how damage is found
- `arrays`               the only file that knows Orbax
- `meeting`              where a process whose write failed tells the others
- `mirror`               a copy at a URL: gs://, s3://, any that fsspec knows
- `errors.CheckpointError`
"""
