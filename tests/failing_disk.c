// A failing disk for tests. Preloaded into the program, it makes writes and
// syncs below $FAILING_DISK_DIR fail while the file $FAILING_DISK_MODE contains
// a failure mode: "enospc", "short" (half is written, then no space) or "fsync"
// (input/output error).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int mode_is(const char *wanted) {
    const char *path = getenv("FAILING_DISK_MODE");
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    ssize_t (*real_read)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    char mode[16] = {0};
    int file = path ? real_open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    real_read(file, mode, sizeof mode - 1);
    close(file);
    return strncmp(mode, wanted, strlen(wanted)) == 0;
}

static int is_ours(int file) {
    const char *folder = getenv("FAILING_DISK_DIR");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!folder || length < 0) return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

#define FAILS(file) (is_ours(file))

ssize_t write(int file, const void *bytes, size_t count) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (FAILS(file)) {
        if (mode_is("enospc")) { errno = ENOSPC; return -1; }
        if (mode_is("short")) {
            if (count > 1) return real(file, bytes, count / 2);
            errno = ENOSPC;
            return -1;
        }
    }
    return real(file, bytes, count);
}

static ssize_t positioned(const char *name, int file, const void *bytes, size_t count, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, name);
    if (FAILS(file)) {
        if (mode_is("enospc")) { errno = ENOSPC; return -1; }
        if (mode_is("short")) {
            real(file, bytes, count / 2, at);
            errno = ENOSPC;
            return -1;
        }
    }
    return real(file, bytes, count, at);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) { return positioned("pwrite", file, bytes, count, at); }
ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) { return positioned("pwrite64", file, bytes, count, at); }

static int sync_with(const char *name, int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    if (FAILS(file) && mode_is("fsync")) { errno = EIO; return -1; }
    return real(file);
}

int fsync(int file) { return sync_with("fsync", file); }
int fdatasync(int file) { return sync_with("fdatasync", file); }
