/*
 * A runtime that only records what it was given: argv, environment, descriptors, directory, stdio, signals,
 * cgroup.
 *
 * In C, because Python ignores SIGPIPE before its first line and a shell blocks signals while it waits.
 * Writes one NAME=VALUE a line (values with \xHH for what is not printable) to RECORDER_OUTPUT, made in one
 * piece; then copies stdin to stdout if RECORDER_CAT is set, and exits with RECORDER_EXIT.
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

extern char **environ;

static void put(FILE *out, const char *name, const char *value)
{
	fprintf(out, "%s=", name);
	for (const unsigned char *at = (const unsigned char *)value; *at; at++) {
		if (isprint(*at) && *at != '\\')
			fputc(*at, out);
		else
			fprintf(out, "\\x%02x", *at);
	}
	fputc('\n', out);
}

static void put_signals(FILE *out)
{
	char line[256];
	FILE *status = fopen("/proc/self/status", "re");

	while (status && fgets(line, sizeof(line), status))
		if (!strncmp(line, "Sig", 3) && strncmp(line, "SigQ", 4) && strncmp(line, "SigPnd", 6)) {
			line[strcspn(line, "\n")] = 0;
			put(out, "signals", line);
		}
	if (status)
		fclose(status);
}

static void put_cgroup(FILE *out)
{
	char line[4096];
	FILE *own = fopen("/proc/self/cgroup", "re");

	while (own && fgets(line, sizeof(line), own))
		if (!strncmp(line, "0::", 3)) {
			line[strcspn(line, "\n")] = 0;
			put(out, "cgroup", line);
		}
	if (own)
		fclose(own);
}

static void put_descriptors(FILE *out)
{
	for (int fd = 0; fd < 64; fd++) {
		char path[64], target[512], value[640];
		ssize_t length;

		if (fcntl(fd, F_GETFD) < 0 || fd == fileno(out))
			continue;
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		length = readlink(path, target, sizeof(target) - 1);
		if (length < 0)
			continue;
		target[length] = 0;
		snprintf(value, sizeof(value), "%d %s", fd, target);
		put(out, "fd", value);
	}
}

int main(int argc, char **argv)
{
	const char *output = getenv("RECORDER_OUTPUT"), *code = getenv("RECORDER_EXIT");
	char directory[4096], number[32], buffer[4096];
	ssize_t length;
	FILE *out;
	int fd;

	if (!output)
		return 99;
	fd = open(output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return 98;
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 100) >= 0 ? 100 : fd; /* out of the way of what is recorded */
	for (int low = 0; low < 64; low++)
		if (low != fd && fcntl(low, F_GETFD) == FD_CLOEXEC)
			close(low);
	out = fdopen(fd, "w");
	for (int at = 0; at < argc; at++)
		put(out, "argv", argv[at]);
	for (char **at = environ; *at; at++)
		put(out, "env", *at);
	put_signals(out);
	put_cgroup(out);
	put_descriptors(out);
	if (getcwd(directory, sizeof(directory)))
		put(out, "cwd", directory);
	snprintf(number, sizeof(number), "%d", getpid());
	put(out, "pid", number);
	snprintf(number, sizeof(number), "%d %d", sched_getscheduler(0), getpriority(PRIO_PROCESS, 0));
	put(out, "scheduler", number);
	fclose(out);
	if (getenv("RECORDER_CAT"))
		while ((length = read(0, buffer, sizeof(buffer))) > 0)
			if (write(1, buffer, length) != length)
				return 97;
	return code ? atoi(code) : 0;
}
