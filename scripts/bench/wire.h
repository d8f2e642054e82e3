/* What both yardsticks need: requests as they come over the wire, and system calls that finish.
 *
 * Requests are trusted here: the benchmark makes them itself. Whatever goes wrong ends the program
 * with one line on stderr.
 */
#ifndef WIRE_H
#define WIRE_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE_BYTES 4096UL

struct header {
	int32_t remote_pid;
	int64_t offs;
	uint64_t total_compressed_size;
	int32_t n_pages;
	int32_t nr_iovs;
	int32_t n_blocks;
	uint32_t region_pages;
} __attribute__((packed));

struct request {
	struct header header;
	uint32_t *sizes;
	uint16_t *block_pages; /* NULL in per-page mode */
	struct iovec *iovs;
};

static inline _Noreturn void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "failed");
	exit(1);
}

/* 0 at the end of the file, which may only be before the first byte. */
static inline int read_full(int fd, void *buffer, size_t n_bytes)
{
	size_t done = 0;

	while (done < n_bytes) {
		ssize_t n = read(fd, (char *)buffer + done, n_bytes - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			die("reading a request");
		if (n == 0) {
			if (done == 0)
				return 0;
			errno = 0;
			die("a truncated request");
		}
		done += (size_t)n;
	}
	return 1;
}

static inline void *read_table(int fd, size_t n_bytes)
{
	void *table = malloc(n_bytes ? n_bytes : 1);

	if (!table)
		die("memory for a table");
	errno = 0;
	if (n_bytes && !read_full(fd, table, n_bytes))
		die("a truncated request");
	return table;
}

/* 0 when there are no more. */
static inline int read_request(int fd, struct request *request)
{
	const struct header *header = &request->header;

	if (!read_full(fd, &request->header, sizeof request->header))
		return 0;
	request->sizes = read_table(fd, (size_t)header->n_blocks * sizeof(uint32_t));
	request->block_pages = NULL;
	if (header->region_pages)
		request->block_pages = read_table(fd, (size_t)header->n_blocks * sizeof(uint16_t));
	request->iovs = read_table(fd, (size_t)header->nr_iovs * sizeof(struct iovec));
	return 1;
}

static inline void free_request(struct request *request)
{
	free(request->sizes);
	free(request->block_pages);
	free(request->iovs);
}

static inline size_t block_bytes(const struct request *request, int32_t block)
{
	return request->block_pages ? request->block_pages[block] * PAGE_BYTES : PAGE_BYTES;
}

static inline void pread_full(int fd, void *buffer, size_t n_bytes, off_t offset)
{
	size_t done = 0;

	while (done < n_bytes) {
		ssize_t n = pread(fd, (char *)buffer + done, n_bytes - done, offset + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("reading the pages image");
		done += (size_t)n;
	}
}

static inline void *map_buffer(size_t n_bytes, int advice)
{
	void *buffer = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (buffer == MAP_FAILED)
		die("memory for a buffer");
	madvise(buffer, n_bytes, advice);
	return buffer;
}

#endif
