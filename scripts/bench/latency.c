/* How long a restorer waits: for the first answer of a helper it has just started, and for each
 * answer after that.
 *
 * As on a real restore, this process is the one being restored, small, and the helper its child.
 * Each request is for one page, with the same payload and another destination.
 *
 *   latency PAGES STORED_SIZE SOURCE N HELPER...
 *
 * PAGES is a pages image that starts with a block of STORED_SIZE bytes, SOURCE holds that page
 * uncompressed, HELPER... is a command line to which the descriptors are added. Prints the
 * nanoseconds from before fork to the first answer, then those of each of N requests, one a line.
 */
#define _GNU_SOURCE
#include "wire.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <time.h>

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static pid_t spawn(char **command, int n_words, int pages_fd, int request_fd, int reply_fd)
{
	char fds[3][16], *argv[n_words + 7];
	pid_t pid;

	snprintf(fds[0], sizeof fds[0], "%d", pages_fd);
	snprintf(fds[1], sizeof fds[1], "%d", request_fd);
	snprintf(fds[2], sizeof fds[2], "%d", reply_fd);
	memcpy(argv, command, (size_t)n_words * sizeof *argv);
	argv[n_words] = "--pages-fd";
	argv[n_words + 1] = fds[0];
	argv[n_words + 2] = "--request-fd";
	argv[n_words + 3] = fds[1];
	argv[n_words + 4] = "--reply-fd";
	argv[n_words + 5] = fds[2];
	argv[n_words + 6] = NULL;
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		fcntl(pages_fd, F_SETFD, 0);
		fcntl(request_fd, F_SETFD, 0);
		fcntl(reply_fd, F_SETFD, 0);
		execvp(argv[0], argv);
		die(argv[0]);
	}
	return pid;
}

static void ask(int request_fd, int reply_fd, char *page, uint32_t stored_size)
{
	struct {
		struct header header;
		uint32_t size;
		struct iovec iov;
	} __attribute__((packed)) request = {
		.header = {
			.remote_pid = getpid(),
			.total_compressed_size = stored_size,
			.n_pages = 1,
			.nr_iovs = 1,
			.n_blocks = 1,
		},
		.size = stored_size,
		.iov = { page, PAGE_BYTES },
	};
	int64_t answer = 0;

	if (write(request_fd, &request, sizeof request) != sizeof request)
		die("writing a request");
	if (!read_full(reply_fd, &answer, sizeof answer) || answer != PAGE_BYTES) {
		errno = answer < 0 ? (int)-answer : 0;
		die("the answer of the helper");
	}
}

int main(int argc, char **argv)
{
	int requests[2], replies[2], pages_fd, source_fd, status;
	char expected[PAGE_BYTES], *memory;
	uint32_t stored_size;
	long n;
	pid_t pid;

	if (argc < 6) {
		fprintf(stderr, "usage: latency PAGES STORED_SIZE SOURCE N HELPER...\n");
		return 2;
	}
	pages_fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (pages_fd < 0)
		die(argv[1]);
	stored_size = (uint32_t)atoi(argv[2]);
	source_fd = open(argv[3], O_RDONLY | O_CLOEXEC);
	if (source_fd < 0)
		die(argv[3]);
	pread_full(source_fd, expected, sizeof expected, 0);
	n = atol(argv[4]);
	memory = mmap(NULL, (size_t)(n + 1) * PAGE_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long long *times = calloc((size_t)(n + 1), sizeof *times);
	if (memory == MAP_FAILED || !times || pipe2(requests, O_CLOEXEC) || pipe2(replies, O_CLOEXEC))
		die("getting ready");

	times[0] = now();
	pid = spawn(argv + 5, argc - 5, pages_fd, requests[0], replies[1]);
	close(requests[0]);
	close(replies[1]);
	ask(requests[1], replies[0], memory, stored_size);
	times[0] = now() - times[0];
	for (long i = 1; i <= n; i++) {
		long long start = now();

		ask(requests[1], replies[0], memory + i * PAGE_BYTES, stored_size);
		times[i] = now() - start;
	}
	close(requests[1]);
	if (waitpid(pid, &status, 0) != pid || status != 0) {
		errno = 0;
		die("the helper did not end well");
	}
	for (long i = 0; i <= n; i++) {
		if (memcmp(memory + i * PAGE_BYTES, expected, PAGE_BYTES)) {
			errno = 0;
			die("a page that is not the dumped one");
		}
		printf("%lld\n", times[i]);
	}
	return 0;
}
