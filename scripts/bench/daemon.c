/* The yardstick: a helper in C that does what a straightforward one does, one request at a time.
 *
 * One thread. All compressed bytes of a request are read into one buffer, all its blocks decoded
 * into another (of huge pages, where it is large enough), then everything that is not zero is written into the target, and
 * both buffers are given back to the kernel. That is the design of the daemon in CRIU pull request
 * 2895; this is an implementation of its own, from the wire protocol.
 *
 *   daemon --pages-fd N --request-fd N --reply-fd N [--target PID]
 *
 * Only for comparison: it does not check what it is told, and leaves zero pages unwritten.
 */
#define _GNU_SOURCE
#include "wire.h"

#include <getopt.h>
#include <limits.h>
#include <lz4.h>
#include <stdbool.h>

struct buffer {
	char *bytes;
	size_t size;
};

/* A batch of ranges for one system call; local and remote ones are cut differently. */
struct batch {
	pid_t pid;
	size_t n_bytes;
	unsigned long n_local, n_remote;
	struct iovec local[IOV_MAX], remote[IOV_MAX];
};

static void reserve(struct buffer *buffer, size_t n_bytes, int advice)
{
	if (n_bytes <= buffer->size)
		return;
	if (buffer->bytes)
		munmap(buffer->bytes, buffer->size);
	buffer->size = n_bytes;
	buffer->bytes = map_buffer(n_bytes, advice);
}

static void give_back(struct buffer *buffer)
{
	if (buffer->bytes)
		madvise(buffer->bytes, buffer->size, MADV_DONTNEED);
}

/* Pages of zero blocks are left alone, and marked in "zero", one byte for each page. */
static void decode(const struct request *request, const char *payload, char *pages, char *zero)
{
	for (int32_t block = 0; block < request->header.n_blocks; block++) {
		size_t n_bytes = block_bytes(request, block);
		uint32_t size = request->sizes[block];

		if (size == n_bytes) {
			memcpy(pages, payload, n_bytes);
		} else if (size != 0) {
			int n = LZ4_decompress_safe(payload, pages, (int)size, (int)n_bytes);

			if (n != (int)n_bytes) {
				errno = EBADMSG;
				die("decoding a block");
			}
		}
		memset(zero, size == 0, n_bytes / PAGE_BYTES);
		payload += size;
		pages += n_bytes;
		zero += n_bytes / PAGE_BYTES;
	}
}

static bool is_zero(const char *page)
{
	return page[0] == 0 && !memcmp(page, page + 1, PAGE_BYTES - 1);
}

static void flush(struct batch *batch)
{
	ssize_t n;

	if (!batch->n_bytes)
		return;
	n = process_vm_writev(batch->pid, batch->local, batch->n_local, batch->remote,
			      batch->n_remote, 0);
	if (n != (ssize_t)batch->n_bytes)
		die("writing into the target");
	batch->n_bytes = batch->n_local = batch->n_remote = 0;
}

static void extend(struct iovec *iovs, unsigned long *n_iovs, char *base, size_t n_bytes)
{
	struct iovec *last = iovs + *n_iovs - 1;

	if (*n_iovs && (char *)last->iov_base + last->iov_len == base) {
		last->iov_len += n_bytes;
	} else {
		iovs[*n_iovs] = (struct iovec){ base, n_bytes };
		++*n_iovs;
	}
}

static int64_t inject(const struct request *request, char *pages, const char *zero)
{
	static struct batch batch;
	int64_t written = 0;

	batch.pid = request->header.remote_pid;
	for (int32_t i = 0; i < request->header.nr_iovs; i++) {
		char *remote = request->iovs[i].iov_base;
		char *end = remote + request->iovs[i].iov_len;

		for (; remote < end; remote += PAGE_BYTES, pages += PAGE_BYTES) {
			if (*zero++ || is_zero(pages))
				continue;
			if (batch.n_local == IOV_MAX || batch.n_remote == IOV_MAX)
				flush(&batch);
			extend(batch.local, &batch.n_local, pages, PAGE_BYTES);
			extend(batch.remote, &batch.n_remote, remote, PAGE_BYTES);
			batch.n_bytes += PAGE_BYTES;
			written += PAGE_BYTES;
			/* The kernel moves at most 2 GiB, less a page, in one call. */
			if (batch.n_bytes >= 1UL << 30)
				flush(&batch);
		}
	}
	flush(&batch);
	return written;
}

static void serve(int pages_fd, int request_fd, int reply_fd)
{
	struct buffer payload = { 0 }, pages = { 0 };
	struct request request;

	while (read_request(request_fd, &request)) {
		size_t n_bytes = request.header.total_compressed_size;
		char *zero = malloc((size_t)request.header.n_pages + 1);
		int64_t answer;

		if (!zero)
			die("memory for a table");
		reserve(&payload, n_bytes, MADV_NORMAL);
		reserve(&pages, (size_t)request.header.n_pages * PAGE_BYTES, MADV_HUGEPAGE);
		pread_full(pages_fd, payload.bytes, n_bytes, request.header.offs);
		decode(&request, payload.bytes, pages.bytes, zero);
		answer = inject(&request, pages.bytes, zero);
		give_back(&payload);
		give_back(&pages);
		free(zero);
		free_request(&request);
		if (write(reply_fd, &answer, sizeof answer) != sizeof answer)
			die("answering");
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pages-fd", required_argument, NULL, 'p' },
		{ "request-fd", required_argument, NULL, 'q' },
		{ "reply-fd", required_argument, NULL, 'r' },
		{ "target", required_argument, NULL, 't' },
		{ 0 },
	};
	int pages_fd = -1, request_fd = -1, reply_fd = -1, option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'p': pages_fd = atoi(optarg); break;
		case 'q': request_fd = atoi(optarg); break;
		case 'r': reply_fd = atoi(optarg); break;
		case 't': break; /* any process may be written to */
		default: return 2;
		}
	}
	if (pages_fd < 0 || request_fd < 0 || reply_fd < 0) {
		fprintf(stderr, "usage: daemon --pages-fd N --request-fd N --reply-fd N\n");
		return 2;
	}
	serve(pages_fd, request_fd, reply_fd);
	return 0;
}
