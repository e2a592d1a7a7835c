#!/bin/bash
#SBATCH --job-name=@{name}
#SBATCH --nodes=@{hosts}
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=@{time}
#SBATCH --output=@{folder}/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --requeue
@{lines}
# Made by `jaxlm launch slurm`: one process on each of @{hosts} nodes. Two minutes before the time is up all save and
# stop. A node that fails puts the job back into the queue, and it goes on from its last good checkpoint; so does a
# process that fails, here.
export PYTHONUNBUFFERED=1
@{devices}
for attempt in $(seq 0 @{retries}); do
  # JAX finds the job by Slurm's variables: --coordinator auto.
  srun --kill-on-bad-exit=1 --open-mode=append --output=@{folder}/%t.log \
    @{command}
  code=$?
  case $code in
    0 | 2 | 3) exit $code ;;
  esac
  [ $code -ge 128 ] && [ $code -ne 137 ] && exit $code
  echo "attempt $attempt ended with exit code $code; the logs are in" @{folder}
done
exit $code
