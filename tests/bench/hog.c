/* A call that needs memory: takes it chunk by chunk, holds it, and says how long each chunk took.
 *
 *     hog TOTAL_MB CHUNK_KB THINK_US HOLD_MS [FILE]
 *
 * Begins when its stdin ends, so that several begin at the same moment, long after they were started.
 * With FILE each chunk is of huge pages where the kernel has them, and as much again goes through the file
 * (page cache). Prints one JSON object: milliseconds of the chunks at P50, P95, P99 and most, seconds until all
 * was taken.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static double now_ms(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static int by_size(const void *left, const void *right)
{
	double a = *(const double *)left, b = *(const double *)right;

	return a < b ? -1 : a > b;
}

static void take(size_t size, int file)
{
	char *chunk = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (chunk == MAP_FAILED)
		exit(3);
	madvise(chunk, size, file < 0 ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	for (size_t at = 0; at < size; at += 4096)
		chunk[at] = 1;
	if (file >= 0 && write(file, chunk, size) != (ssize_t)size)
		exit(4);
}

int main(int argc, char **argv)
{
	if (argc < 5)
		return 2;
	size_t size = strtoul(argv[2], NULL, 10) << 10, count = (strtoul(argv[1], NULL, 10) << 20) / size;
	unsigned int think_us = strtoul(argv[3], NULL, 10), hold_ms = strtoul(argv[4], NULL, 10);
	int file = argc > 5 ? open(argv[5], O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;
	double *took = calloc(count, sizeof(*took));
	char byte;

	while (read(0, &byte, 1) > 0)
		;
	double began = now_ms();

	for (size_t number = 0; number < count; number++) {
		double before = now_ms();

		take(size, file);
		took[number] = now_ms() - before;
		if (think_us)
			usleep(think_us);
	}
	double taken = now_ms() - began;

	usleep(hold_ms * 1000);
	qsort(took, count, sizeof(*took), by_size);
	printf("{\"p50\": %.3f, \"p95\": %.3f, \"p99\": %.3f, \"max\": %.3f, \"taken_s\": %.3f}\n", took[count / 2],
	       took[count * 95 / 100], took[count * 99 / 100], took[count - 1], taken / 1e3);
	return 0;
}
