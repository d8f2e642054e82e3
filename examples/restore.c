/*
 * A restorer in C: has one page of its own memory filled from a pages image.
 *
 * Usage: restore PAGES_IMAGE [SOCKET]
 *
 * Without SOCKET it spawns a helper; with it, `helperd attach`, which has a session of the
 * `helperd serve` that listens there. Nothing else differs: two pipes, the plain protocol, and an
 * exit status of 0 when every request was served.
 *
 *     cc -o restore restore.c && ./restore pages-1.img
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>

#define PAGE 4096

struct pipe_hdr {
	int32_t remote_pid;
	int64_t offs;
	uint64_t total_compressed_size;
	int32_t n_pages;
	int32_t nr_iovs;
	int32_t n_blocks;
	uint32_t region_pages;
} __attribute__((packed));

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/*
 * Start the helper; the numbers of the descriptors it is told are those it inherits. It must not
 * inherit our ends of the pipes: it would wait for itself to close them.
 */
static pid_t spawn(int pages, int requests, int replies, const char *socket)
{
	char fds[3][16];
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	if (fcntl(requests, F_SETFD, 0) < 0 || fcntl(replies, F_SETFD, 0) < 0)
		fail("fcntl");
	snprintf(fds[0], sizeof(fds[0]), "%d", pages);
	snprintf(fds[1], sizeof(fds[1]), "%d", requests);
	snprintf(fds[2], sizeof(fds[2]), "%d", replies);
	if (socket)
		execlp("helperd", "helperd", "attach", "--socket", socket, "--pages-fd", fds[0],
		       "--request-fd", fds[1], "--reply-fd", fds[2], (char *)NULL);
	else
		execlp("helperd", "helperd", "--pages-fd", fds[0], "--request-fd", fds[1],
		       "--reply-fd", fds[2], (char *)NULL);
	fail("helperd");
	return -1;
}

int main(int argc, char **argv)
{
	int pages, requests[2], replies[2], status;
	struct stat image;
	ssize_t answer;
	pid_t helper;

	if (argc < 2) {
		fprintf(stderr, "usage: restore PAGES_IMAGE [SOCKET]\n");
		return 2;
	}
	pages = open(argv[1], O_RDONLY);
	if (pages < 0 || fstat(pages, &image) < 0)
		fail(argv[1]);
	if (pipe2(requests, O_CLOEXEC) < 0 || pipe2(replies, O_CLOEXEC) < 0)
		fail("pipe2");
	helper = spawn(pages, requests[0], replies[1], argc > 2 ? argv[2] : NULL);
	/* The helper has these ends; that they end with it is how we see that it has died. */
	close(requests[0]);
	close(replies[1]);

	/* The image of this example holds one block: a page, raw (4096 bytes) or as LZ4. */
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		fail("mmap");
	uint32_t size = image.st_size;
	uint64_t iov[2] = { (uint64_t)(uintptr_t)page, PAGE };
	struct pipe_hdr header = {
		.remote_pid = getpid(), .offs = 0, .total_compressed_size = size,
		.n_pages = 1, .nr_iovs = 1, .n_blocks = 1, .region_pages = 0,
	};
	char request[sizeof(header) + sizeof(size) + sizeof(iov)];

	memcpy(request, &header, sizeof(header));
	memcpy(request + sizeof(header), &size, sizeof(size));
	memcpy(request + sizeof(header) + sizeof(size), iov, sizeof(iov));
	if (write(requests[1], request, sizeof(request)) != sizeof(request))
		fail("request");
	if (read(replies[0], &answer, sizeof(answer)) != sizeof(answer))
		fail("answer");
	if (answer < 0) {
		fprintf(stderr, "the helper answered: %s\n", strerror(-answer));
		return 1;
	}
	close(requests[1]);
	if (waitpid(helper, &status, 0) < 0 || status != 0) {
		fprintf(stderr, "the helper failed\n");
		return 1;
	}
	fwrite(page, PAGE, 1, stdout);
	return 0;
}
