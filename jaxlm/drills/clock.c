/* A wall clock that jumps an hour ahead once the file DRILL_CLOCK_FILE exists. Loaded with LD_PRELOAD.
   The clock that only goes forward (CLOCK_MONOTONIC) stays what it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real)(clockid_t, struct timespec *);
static int jumped;

static int jumps(void) {
    if (!jumped) {
        const char *file = getenv("DRILL_CLOCK_FILE");
        jumped = file && access(file, F_OK) == 0;
    }
    return jumped;
}

int clock_gettime(clockid_t which, struct timespec *out) {
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(which, out);
    if (result == 0 && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE) && jumps()) out->tv_sec += 3600;
    return result;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
