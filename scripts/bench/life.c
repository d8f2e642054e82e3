/* A whole restore: from before there is a helper until nothing of it is left.
 *
 * As on a real restore, this process is the one being restored, and a spawned helper its child.
 *
 *   life PAGES REQUESTS SOURCE spawn HELPER...
 *   life PAGES REQUESTS SOURCE connect SOCKET
 *
 * PAGES is the pages image, REQUESTS a file of wire requests, whose process is replaced by this one,
 * SOURCE holds the content of what they name, uncompressed, one after the other. "spawn" starts
 * HELPER..., to which the descriptors are added; "connect" asks a server for a session. Prints the
 * nanoseconds from before fork to the helper's exit status, or from before connect to the end of the
 * connection; before that every byte was compared.
 */
#define _GNU_SOURCE
#include "wire.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

/* A SessionRequest of version 1, everything else as the server has it. */
static const char session_request[] = { 0x08, 0x01 };

static struct request *requests;
static size_t n_requests;
static int pages_fd, request_pipe[2], reply_pipe[2];

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die(path);
	return fd;
}

static void read_requests(const char *path)
{
	int fd = open_file(path);
	struct request request;

	while (read_request(fd, &request)) {
		requests = realloc(requests, (n_requests + 1) * sizeof request);
		if (!requests)
			die("memory for the requests");
		request.header.remote_pid = getpid();
		requests[n_requests++] = request;
	}
	close(fd);
}

static void map_memory(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;

	for (size_t i = 0; i < n_requests; i++) {
		for (int32_t j = 0; j < requests[i].header.nr_iovs; j++) {
			const struct iovec *iov = &requests[i].iovs[j];

			if (mmap(iov->iov_base, iov->iov_len, PROT_READ | PROT_WRITE, flags, -1, 0) !=
			    iov->iov_base)
				die("mapping the memory to restore");
		}
	}
}

static void compare(const char *path)
{
	int fd = open_file(path);
	struct stat status;
	char *source;
	size_t at = 0;

	if (fstat(fd, &status))
		die(path);
	source = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (source == MAP_FAILED)
		die(path);
	errno = 0;
	for (size_t i = 0; i < n_requests; i++) {
		for (int32_t j = 0; j < requests[i].header.nr_iovs; j++) {
			const struct iovec *iov = &requests[i].iovs[j];

			if (memcmp(iov->iov_base, source + at, iov->iov_len))
				die("memory that is not the dumped one");
			at += iov->iov_len;
		}
	}
	if (at != (size_t)status.st_size)
		die("requests that do not name all of the memory");
}

static pid_t spawn(char **command, int n_words)
{
	char fds[3][16], *argv[n_words + 7];
	pid_t pid;

	snprintf(fds[0], sizeof fds[0], "%d", pages_fd);
	snprintf(fds[1], sizeof fds[1], "%d", request_pipe[0]);
	snprintf(fds[2], sizeof fds[2], "%d", reply_pipe[1]);
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
		fcntl(request_pipe[0], F_SETFD, 0);
		fcntl(reply_pipe[1], F_SETFD, 0);
		execvp(argv[0], argv);
		die(argv[0]);
	}
	return pid;
}

static int connect_to(const char *path)
{
	union {
		char bytes[CMSG_SPACE(3 * sizeof(int))];
		struct cmsghdr align;
	} rights = { 0 };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct iovec part = { (void *)session_request, sizeof session_request };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = rights.bytes,
				  .msg_controllen = sizeof rights.bytes };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int fds[3] = { pages_fd, request_pipe[0], reply_pipe[1] };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
		die(path);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof fds);
	memcpy(CMSG_DATA(header), fds, sizeof fds);
	if (sendmsg(fd, &message, 0) != sizeof session_request)
		die("asking for a session");
	return fd;
}

static void write_full(const void *bytes, size_t n_bytes)
{
	while (n_bytes) {
		ssize_t n = write(request_pipe[1], bytes, n_bytes);

		if (n < 0)
			die("writing a request");
		bytes = (const char *)bytes + n;
		n_bytes -= (size_t)n;
	}
}

static void ask(const struct request *request)
{
	const struct header *header = &request->header;
	int64_t answer = 0;

	write_full(header, sizeof *header);
	write_full(request->sizes, (size_t)header->n_blocks * sizeof *request->sizes);
	if (request->block_pages)
		write_full(request->block_pages,
			   (size_t)header->n_blocks * sizeof *request->block_pages);
	write_full(request->iovs, (size_t)header->nr_iovs * sizeof *request->iovs);
	if (!read_full(reply_pipe[0], &answer, sizeof answer) || answer < 0) {
		errno = answer < 0 ? (int)-answer : 0;
		die("the answer of the helper");
	}
}

int main(int argc, char **argv)
{
	int connection = -1, status = 0;
	char reply[1 << 14];
	long long start;
	pid_t pid = -1;

	if (argc < 6) {
		fprintf(stderr, "usage: life PAGES REQUESTS SOURCE spawn|connect HELPER...|SOCKET\n");
		return 2;
	}
	pages_fd = open_file(argv[1]);
	read_requests(argv[2]);
	map_memory();
	if (pipe2(request_pipe, O_CLOEXEC) || pipe2(reply_pipe, O_CLOEXEC))
		die("pipes");

	start = now();
	if (!strcmp(argv[4], "spawn"))
		pid = spawn(argv + 5, argc - 5);
	else
		connection = connect_to(argv[5]);
	close(request_pipe[0]);
	close(reply_pipe[1]);
	for (size_t i = 0; i < n_requests; i++)
		ask(&requests[i]);
	close(request_pipe[1]);
	errno = 0;
	if (pid >= 0 && (waitpid(pid, &status, 0) != pid || status != 0))
		die("the helper did not end well");
	while (connection >= 0 && recv(connection, reply, sizeof reply, 0) > 0)
		;
	start = now() - start;

	compare(argv[3]);
	printf("%lld\n", start);
	return 0;
}
