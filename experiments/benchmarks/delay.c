/* delay NAMESPACE_A NAMESPACE_B INTERFACE ONE_WAY_MICROSECONDS
 *
 * Makes a TAP device of that name in each of two network namespaces and carries every Ethernet frame from one to the
 * other after a fixed delay. The rate is left to a queueing discipline on the devices. Prints "ready" once both exist,
 * and runs until it is killed. Linux, root. For kernels without netem.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { FRAMES = 1 << 14, LARGEST = 2048, BURST = 64 };

struct waiting {
  uint64_t due; /* nanoseconds */
  ssize_t size;
  unsigned char bytes[LARGEST];
};

struct line { /* one direction: a ring of frames in the order in which they are due */
  struct waiting *frames;
  uint32_t first, next;
};

static uint64_t now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (uint64_t)at.tv_sec * 1000000000ull + (uint64_t)at.tv_nsec;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int tap(const char *namespace, const char *name) {
  char path[256];
  snprintf(path, sizeof path, "/run/netns/%s", namespace);
  int where = open(path, O_RDONLY);
  if (where < 0 || setns(where, CLONE_NEWNET)) fail(path);
  close(where);
  int made = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  if (made < 0) fail("/dev/net/tun");
  struct ifreq request = {0};
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  if (ioctl(made, TUNSETIFF, &request)) fail("TUNSETIFF");
  return made;
}

int main(int count, char **given) {
  if (count != 5) {
    fprintf(stderr, "usage: delay NAMESPACE_A NAMESPACE_B INTERFACE ONE_WAY_MICROSECONDS\n");
    return 2;
  }
  int ends[2] = {tap(given[1], given[3]), tap(given[2], given[3])};
  uint64_t delay = strtoull(given[4], NULL, 10) * 1000ull;
  struct line lines[2] = {0};
  for (int i = 0; i < 2; i++)
    if (!(lines[i].frames = calloc(FRAMES, sizeof *lines[i].frames))) fail("calloc");
  prctl(PR_SET_TIMERSLACK, 1000);
  prctl(PR_SET_PDEATHSIG, 9);
  puts("ready");
  fflush(stdout);
  for (;;) {
    uint64_t at = now(), next = at + 1000000000ull;
    for (int i = 0; i < 2; i++) {
      struct line *line = &lines[i];
      while (line->first != line->next && line->frames[line->first % FRAMES].due <= at) {
        struct waiting *frame = &line->frames[line->first++ % FRAMES];
        if (write(ends[1 - i], frame->bytes, (size_t)frame->size) < 0) { /* the other end is down: the frame is lost */
        }
      }
      if (line->first != line->next && line->frames[line->first % FRAMES].due < next)
        next = line->frames[line->first % FRAMES].due;
    }
    at = now();
    uint64_t rest = next > at ? next - at : 0;
    struct timespec wait = {(time_t)(rest / 1000000000ull), (long)(rest % 1000000000ull)};
    struct pollfd polled[2] = {{ends[0], POLLIN, 0}, {ends[1], POLLIN, 0}};
    ppoll(polled, 2, &wait, NULL);
    for (int i = 0; i < 2; i++) {
      struct line *line = &lines[i];
      for (int k = 0; k < BURST && polled[i].revents & POLLIN && line->next - line->first < FRAMES; k++) {
        struct waiting *frame = &line->frames[line->next % FRAMES];
        frame->size = read(ends[i], frame->bytes, LARGEST);
        if (frame->size <= 0) break;
        frame->due = now() + delay;
        line->next++;
      }
    }
  }
}
