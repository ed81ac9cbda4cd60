/* Stands between a Redis and its disk (LD_PRELOAD), so that tests can have what only bad luck brings:

   power loss   FILE.synced says how long FILE was when it was last synced; all beyond would be lost
   full disk    while the file that THUMBWHEEL_DISK_FULL names exists, append-only files take no more bytes */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int append_only(int fd, char *path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, size - 8);
  if (n <= 4) return 0;
  path[n] = 0;
  return strcmp(path + n - 4, ".aof") == 0;
}

static int sync_and_note(int fd, const char *name) {
  int (*real)(int) = dlsym(RTLD_NEXT, name);
  char path[4096];
  struct stat before;
  int noted = append_only(fd, path, sizeof path) && fstat(fd, &before) == 0; /* before: later bytes may not be in it */
  int result = real(fd);
  if (result == 0 && noted) {
    char text[32];
    int length = snprintf(text, sizeof text, "%020lld", (long long)before.st_size); /* one width: overwritten whole */
    strcat(path, ".synced");
    int note = open(path, O_WRONLY | O_CREAT, 0600);
    if (note >= 0) {
      ssize_t (*write_)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
      write_(note, text, length);
      close(note);
    }
  }
  return result;
}

int fsync(int fd) { return sync_and_note(fd, "fsync"); }
int fdatasync(int fd) { return sync_and_note(fd, "fdatasync"); }

ssize_t write(int fd, const void *data, size_t size) {
  static ssize_t (*real)(int, const void *, size_t);
  if (!real) real = dlsym(RTLD_NEXT, "write");
  const char *full = getenv("THUMBWHEEL_DISK_FULL");
  char path[4096];
  if (full && access(full, F_OK) == 0 && append_only(fd, path, sizeof path)) {
    errno = ENOSPC;
    return -1;
  }
  return real(fd, data, size);
}
