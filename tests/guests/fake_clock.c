/* A fake time of day, for guests: the kernel has one clock for all of them, and it is the host's.
 *
 * Preloaded into each process of a guest. Its offset in seconds is an int64 in OFFSET, which is
 * mapped, so that a step reaches processes that run. Other clocks are left alone, as a step leaves
 * them alone; libfaketime would move CLOCK_MONOTONIC too, but for a variable that a service's
 * children are not given. An end of a wait by the time of day is given to the kernel in its time.
 * systemd's own processes keep the true time: their timers are the kernel's.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define OFFSET "/etc/fake-clock"

static const volatile int64_t zero;
static const volatile int64_t *offset = &zero;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_cond_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*real_mutex_timedlock)(pthread_mutex_t *, const struct timespec *);
static int (*real_sem_timedwait)(sem_t *, const struct timespec *);
static long (*real_syscall)(long, ...);

__attribute__((constructor)) static void begin(void)
{
    int saved = errno;
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    real_cond_timedwait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    real_mutex_timedlock = dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
    real_sem_timedwait = dlsym(RTLD_NEXT, "sem_timedwait");
    real_syscall = dlsym(RTLD_NEXT, "syscall");
    if (getpid() != 1 && strncmp(program_invocation_short_name, "systemd", 7) != 0) {
        int file = open(OFFSET, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            void *mapped = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
            if (mapped != MAP_FAILED)
                offset = mapped;
            close(file);
        }
    }
    errno = saved;
}

static int true_time(clockid_t id, struct timespec *at)
{
    /* Another library's constructor may ask before ours ran. */
    if (!real_clock_gettime)
        begin();
    return real_clock_gettime(id, at);
}

int clock_gettime(clockid_t id, struct timespec *at)
{
    int done = true_time(id, at);
    if (!done && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        at->tv_sec += *offset;
    return done;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *at, int base)
{
    return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, at) ? base : 0;
}

static struct timespec of_the_kernel(const struct timespec *end)
{
    struct timespec true_end = *end;
    true_end.tv_sec -= *offset;
    if (true_end.tv_sec < 0)
        true_end.tv_sec = 0;
    return true_end;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                           const struct timespec *end)
{
    /* With CLOCK_MONOTONIC an end is far below any time of day. */
    struct timespec true_end = end->tv_sec > 1000000000 ? of_the_kernel(end) : *end;
    return real_cond_timedwait(condition, mutex, &true_end);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *end)
{
    struct timespec true_end = of_the_kernel(end);
    return real_mutex_timedlock(mutex, &true_end);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *end)
{
    struct timespec true_end = of_the_kernel(end);
    return real_sem_timedwait(semaphore, &true_end);
}

long syscall(long number, ...)
{
    va_list given;
    long a[6];
    struct timespec end;
    va_start(given, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(given, long);
    va_end(given);
    if (!real_syscall)
        begin();
    if (number == SYS_clock_gettime)
        return clock_gettime((clockid_t)a[0], (struct timespec *)a[1]);
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
        end = of_the_kernel((const struct timespec *)a[3]);
        a[3] = (long)&end;
    }
    return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
