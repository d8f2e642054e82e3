/* The process that gets restored in helperd's tests and demo.
 *
 * It reads one command per line on stdin and answers each with one line on stdout: "ok",
 * "ok NUMBER" or "error ERRNO TEXT". ADDRESS and LENGTH are hexadecimal. When stdin ends, it exits.
 *
 *   map ADDRESS LENGTH private|shared     map anonymous memory, readable and writable
 *   file ADDRESS LENGTH OFFSET PATH       map a private view of a file, readable and writable
 *   fill ADDRESS LENGTH BYTE              set every byte of a range
 *   protect ADDRESS LENGTH [r][w][x]|-    change the protection of a range
 *   unmap ADDRESS LENGTH
 *   advise ADDRESS LENGTH hugepage|nohugepage
 *   fork                                  answer the pid of a copy that waits, and ends with us
 *   exec                                  run this program anew: same pid, new memory
 *
 * Mappings never replace each other, and nothing here is placed at random, so that the addresses
 * recorded in a checkpoint are free.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define READ_WRITE (PROT_READ | PROT_WRITE)
#define LINE_BYTES 8192

/* Parts of a command line; unused ones are empty. */
struct command {
	char name[16];
	unsigned long address;
	unsigned long length;
	char rest[LINE_BYTES];
};

/* Commands return 0 or an errno. */

static int map_at(unsigned long address, unsigned long length, int flags, int fd, off_t offset)
{
	void *wanted = (void *)address;
	void *got = mmap(wanted, length, READ_WRITE, flags | MAP_FIXED_NOREPLACE, fd, offset);

	if (got == MAP_FAILED)
		return errno;
	if (got != wanted) { /* a kernel older than MAP_FIXED_NOREPLACE takes it for a hint */
		munmap(got, length);
		return EEXIST;
	}
	return 0;
}

static int map_anonymous(const struct command *command)
{
	int kind;

	if (!strcmp(command->rest, "private"))
		kind = MAP_PRIVATE;
	else if (!strcmp(command->rest, "shared"))
		kind = MAP_SHARED;
	else
		return EINVAL;
	return map_at(command->address, command->length, kind | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static int map_file(const struct command *command)
{
	char *path;
	unsigned long offset = strtoul(command->rest, &path, 16);
	int fd, error;

	if (*path != ' ')
		return EINVAL;
	fd = open(path + 1, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	error = map_at(command->address, command->length, MAP_PRIVATE, fd, (off_t)offset);
	close(fd);
	return error;
}

/* The kernel copies, so that a wrong address is EFAULT here and not a signal. */
static int fill(const struct command *command)
{
	static char bytes[1 << 16];
	unsigned long done = 0;
	char *end;
	unsigned long value = strtoul(command->rest, &end, 16);

	if (end == command->rest || *end || value > 0xff)
		return EINVAL;
	memset(bytes, (int)value, sizeof bytes);
	while (done < command->length) {
		unsigned long left = command->length - done;
		struct iovec from = { bytes, left < sizeof bytes ? left : sizeof bytes };
		struct iovec to = { (void *)(command->address + done), from.iov_len };
		ssize_t n = process_vm_writev(getpid(), &from, 1, &to, 1, 0);

		if (n <= 0)
			return n ? errno : EFAULT;
		done += (unsigned long)n;
	}
	return 0;
}

static int protect(const struct command *command)
{
	int protection = PROT_NONE;

	for (const char *c = command->rest; *c; c++) {
		switch (*c) {
		case 'r': protection |= PROT_READ; break;
		case 'w': protection |= PROT_WRITE; break;
		case 'x': protection |= PROT_EXEC; break;
		case '-': break;
		default: return EINVAL;
		}
	}
	return mprotect((void *)command->address, command->length, protection) ? errno : 0;
}

static int unmap(const struct command *command)
{
	return munmap((void *)command->address, command->length) ? errno : 0;
}

static int advise(const struct command *command)
{
	int advice;

	if (!strcmp(command->rest, "hugepage"))
		advice = MADV_HUGEPAGE;
	else if (!strcmp(command->rest, "nohugepage"))
		advice = MADV_NOHUGEPAGE;
	else
		return EINVAL;
	return madvise((void *)command->address, command->length, advice) ? errno : 0;
}

static void wait_with_parent(pid_t parent)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
		_exit(1);
	/* Hold none of the pipes: their other ends must see them close with the parent. */
	close(STDIN_FILENO);
	close(STDOUT_FILENO);
	for (;;)
		pause();
}

static const struct {
	const char *name;
	int (*run)(const struct command *command);
} range_commands[] = {
	{ "map", map_anonymous }, { "file", map_file }, { "fill", fill },
	{ "protect", protect },	  { "unmap", unmap },	{ "advise", advise },
};

static void answer_error(int error)
{
	printf("error %d %s\n", error, strerror(error));
}

static void serve(const char *line, char **argv)
{
	struct command command = { 0 };
	pid_t parent = getpid(), child;
	int consumed = 0, n_parts;

	n_parts = sscanf(line, "%15s %lx %lx %n", command.name, &command.address, &command.length,
			 &consumed);
	if (n_parts == 1 && !strcmp(command.name, "fork")) {
		child = fork();
		if (child == 0)
			wait_with_parent(parent);
		if (child < 0)
			answer_error(errno);
		else
			printf("ok %d\n", (int)child);
		return;
	}
	if (n_parts == 1 && !strcmp(command.name, "exec")) {
		execv("/proc/self/exe", argv); /* its first line is the answer */
		answer_error(errno);
		return;
	}
	if (n_parts == 3) {
		strcpy(command.rest, line + consumed);
		for (size_t i = 0; i < sizeof range_commands / sizeof range_commands[0]; i++) {
			if (strcmp(command.name, range_commands[i].name))
				continue;
			int error = range_commands[i].run(&command);

			if (error)
				answer_error(error);
			else
				puts("ok");
			return;
		}
	}
	answer_error(EINVAL);
}

/* The next line without its end; an overlong one is skipped and read as "". 0 at the end. */
static int read_line(char line[LINE_BYTES])
{
	if (!fgets(line, LINE_BYTES, stdin))
		return 0;
	if (!strchr(line, '\n') && !feof(stdin)) {
		for (int c = 0; c != '\n' && c != EOF;)
			c = getchar();
		line[0] = '\0';
	}
	line[strcspn(line, "\n")] = '\0';
	return 1;
}

int main(int argc, char **argv)
{
	(void)argc;
	static char line[LINE_BYTES];
	int persona = personality(0xffffffff);

	/* Start over with fixed addresses; where that is forbidden (a sandbox), go on without. */
	if (persona != -1 && !(persona & ADDR_NO_RANDOMIZE) &&
	    personality((unsigned long)persona | ADDR_NO_RANDOMIZE) != -1)
		execv("/proc/self/exe", argv);

	prctl(PR_SET_NAME, "helperd-target");
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGCHLD, SIG_IGN); /* no zombies of "fork" */
	puts("ok");
	while (read_line(line))
		serve(line, argv);
	return 0;
}
