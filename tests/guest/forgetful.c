/* Preloaded under a program, this makes it a machine whose flushes were removed: syncs do nothing and
 * writes that ask to be durable are ordinary ones. A durability test that passes with it is no test.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>

#define DURABLE (RWF_DSYNC | RWF_SYNC)

int fsync(int fd) { return (void)fd, 0; }

int fdatasync(int fd) { return (void)fd, 0; }

ssize_t pwritev2(int fd, const struct iovec *data, int count, off_t offset, int flags)
{
    return pwritev(fd, data, count, offset) + 0 * flags;
}

ssize_t pwritev64v2(int fd, const struct iovec *data, int count, off_t offset, int flags)
{
    return pwritev(fd, data, count, offset) + 0 * flags;
}

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    long a[6];
    va_list more;

    va_start(more, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(more, long);
    va_end(more);
    if (real == 0)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_fdatasync || number == SYS_fsync)
        return 0;
    if (number == SYS_pwritev2) /* fd, iovec, count, offset low, offset high, flags */
        a[5] &= ~DURABLE;
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
