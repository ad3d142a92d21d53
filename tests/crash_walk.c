/* Loaded in front of the C library by crash_walk.py: at the n-th call that writes below a folder, something happens. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX], copies[PATH_MAX];
static long count, at;
static int sent, failure;

/* At call number `call` below `watched` a signal is sent (0: none), or that call and all later ones that need room fail
   with an error (0: none). With `kept`, a folder, a copy of `watched` as it stands at each call goes there, named by
   its number: what a process that is killed there leaves behind. */
void crash_arm(const char *watched, long call, int signal_number, int error_number, const char *kept) {
    at = call, sent = signal_number, failure = error_number, count = 0;
    snprintf(copies, sizeof copies, "%s", kept);
    snprintf(folder, sizeof folder, "%s", watched);
}

long crash_count(void) { return count; }

static int below(int base, const char *path) {
    char whole[2 * PATH_MAX] = "", link[64];
    if (!folder[0]) return 0;
    if (!path || path[0] != '/') {
        ssize_t length = 0;
        if (base == AT_FDCWD) {
            if (!getcwd(whole, PATH_MAX)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", base);
            if ((length = readlink(link, whole, PATH_MAX - 1)) < 0) return 0;
            whole[length] = 0;
        }
        strcat(whole, "/");
    }
    if (path) strncat(whole, path, PATH_MAX - 1);
    return !strncmp(whole, folder, strlen(folder)) && whole[strlen(folder)] == '/';
}

/* Whether the call fails. */
static int happens(int base, const char *path, int needs_room) {
    if (!below(base, path)) return 0;
    long call = __sync_add_and_fetch(&count, 1);
    if (copies[0]) {
        char command[3 * PATH_MAX];
        snprintf(command, sizeof command, "cp -a '%s' '%s/%ld'", folder, copies, call);
        if (system(command)) abort();
    }
    if (sent && call == at) raise(sent);
    if (failure && call >= at && needs_room) {
        errno = failure;
        return 1;
    }
    return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(base, path, room) if (happens(base, path, room)) return -1
#define OPENS(flags) ((flags) & (O_CREAT | O_TRUNC))
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & O_CREAT) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags) if (OPENS(flags)) { FAIL(AT_FDCWD, path, 1); } return REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) if (OPENS(flags)) { FAIL(AT_FDCWD, path, 1); } return REAL(open64)(path, flags, mode); }
int openat(int base, const char *path, int flags, ...) { MODE(flags) if (OPENS(flags)) { FAIL(base, path, 1); } return REAL(openat)(base, path, flags, mode); }
int openat64(int base, const char *path, int flags, ...) { MODE(flags) if (OPENS(flags)) { FAIL(base, path, 1); } return REAL(openat64)(base, path, flags, mode); }
FILE *fopen(const char *path, const char *how) { if (how[0] != 'r' && happens(AT_FDCWD, path, 1)) return NULL; return REAL(fopen)(path, how); }
FILE *fopen64(const char *path, const char *how) { if (how[0] != 'r' && happens(AT_FDCWD, path, 1)) return NULL; return REAL(fopen64)(path, how); }
/* Copied in the middle. */
ssize_t write(int fd, const void *bytes, size_t size) {
    ssize_t half = copies[0] && size > 1 && below(fd, NULL) ? REAL(write)(fd, bytes, size / 2) : 0;
    FAIL(fd, NULL, 1);
    ssize_t rest = REAL(write)(fd, (const char *)bytes + half, size - half);
    return rest < 0 ? rest : half + rest;
}
ssize_t writev(int fd, const struct iovec *parts, int number) { FAIL(fd, NULL, 1); return REAL(writev)(fd, parts, number); }
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t where) { FAIL(fd, NULL, 1); return REAL(pwrite)(fd, bytes, size, where); }
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t where) { FAIL(fd, NULL, 1); return REAL(pwrite64)(fd, bytes, size, where); }
ssize_t sendfile(int fd, int from, off_t *where, size_t size) { FAIL(fd, NULL, 1); return REAL(sendfile)(fd, from, where, size); }
ssize_t sendfile64(int fd, int from, off64_t *where, size_t size) { FAIL(fd, NULL, 1); return REAL(sendfile64)(fd, from, where, size); }
ssize_t copy_file_range(int from, off64_t *f, int fd, off64_t *t, size_t size, unsigned flags) { FAIL(fd, NULL, 1); return REAL(copy_file_range)(from, f, fd, t, size, flags); }
int ftruncate(int fd, off_t size) { FAIL(fd, NULL, 1); return REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { FAIL(fd, NULL, 1); return REAL(ftruncate64)(fd, size); }
int fsync(int fd) { if (failure) { FAIL(fd, NULL, 1); } return REAL(fsync)(fd); }
int mkdir(const char *path, mode_t mode) { FAIL(AT_FDCWD, path, 1); return REAL(mkdir)(path, mode); }
int mkdirat(int base, const char *path, mode_t mode) { FAIL(base, path, 1); return REAL(mkdirat)(base, path, mode); }
int rename(const char *from, const char *to) { FAIL(AT_FDCWD, to, 0); return REAL(rename)(from, to); }
int renameat(int base, const char *from, int other, const char *to) { FAIL(other, to, 0); return REAL(renameat)(base, from, other, to); }
int unlink(const char *path) { FAIL(AT_FDCWD, path, 0); return REAL(unlink)(path); }
int unlinkat(int base, const char *path, int flags) { FAIL(base, path, 0); return REAL(unlinkat)(base, path, flags); }
int rmdir(const char *path) { FAIL(AT_FDCWD, path, 0); return REAL(rmdir)(path); }
int link(const char *from, const char *to) { FAIL(AT_FDCWD, to, 1); return REAL(link)(from, to); }
int symlink(const char *from, const char *to) { FAIL(AT_FDCWD, to, 1); return REAL(symlink)(from, to); }
int chmod(const char *path, mode_t mode) { FAIL(AT_FDCWD, path, 0); return REAL(chmod)(path, mode); }
