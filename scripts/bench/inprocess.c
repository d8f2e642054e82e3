/* Another yardstick: decode in the very process that is restored, on N threads, no helper at all.
 *
 * The blocks are decoded straight to their place in fresh memory, so nothing is copied between
 * processes. A restorer that can link LZ4 can do this; how near a helper comes to it is the
 * question.
 *
 *   inprocess PAGES REQUESTS THREADS small|huge
 *
 * PAGES is the pages image, REQUESTS a file of wire requests, all of which are one run. THREADS
 * threads share each request. "small" keeps the memory on 4 KiB pages, "huge" asks for huge ones.
 * On stdin and stdout:
 *
 *   restore       map what the requests name, decode into it; answer "ok WALL_NS CPU_NS"
 *   drop          unmap it; answer "ok"
 */
#define _GNU_SOURCE
#include "wire.h"

#include <fcntl.h>
#include <lz4.h>
#include <pthread.h>
#include <stdbool.h>
#include <time.h>

#define CHUNK_BYTES (128 * PAGE_BYTES)
#define MAX_REGION_BYTES (1024 * PAGE_BYTES)
#define MAX_THREADS 256

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* Blocks that one thread takes at once. */
struct chunk {
	int32_t first, end;
	off_t offset;
	int32_t iov;
	size_t iov_done;
};

/* Where the next chunk of a request starts; the threads advance it in turn. */
struct job {
	const struct request *request;
	pthread_mutex_t lock;
	struct chunk next;
};

static int pages_fd;
static int n_threads;
static bool huge;
static struct request *requests;
static size_t n_requests;
static char *payloads[MAX_THREADS];

static void skip(const struct request *request, struct chunk *at, size_t n_bytes)
{
	at->iov_done += n_bytes;
	if (at->iov_done > request->iovs[at->iov].iov_len) {
		errno = 0;
		die("a block that crosses iovecs"); /* no restorer sends one */
	}
	if (at->iov_done == request->iovs[at->iov].iov_len) {
		at->iov++;
		at->iov_done = 0;
	}
}

static bool take(struct job *job, struct chunk *chunk)
{
	const struct request *request = job->request;
	struct chunk *next = &job->next;
	size_t n_bytes = 0;

	pthread_mutex_lock(&job->lock);
	*chunk = *next;
	while (next->first < request->header.n_blocks && n_bytes < CHUNK_BYTES) {
		size_t block = block_bytes(request, next->first);

		next->offset += request->sizes[next->first];
		next->first++;
		skip(request, next, block);
		n_bytes += block;
	}
	chunk->end = next->first;
	pthread_mutex_unlock(&job->lock);
	return chunk->first < chunk->end;
}

static void carry(const struct request *request, struct chunk *at, char *payload)
{
	size_t n_payload = 0;

	for (int32_t block = at->first; block < at->end; block++)
		n_payload += request->sizes[block];
	pread_full(pages_fd, payload, n_payload, at->offset);
	for (int32_t block = at->first; block < at->end; block++) {
		size_t n_bytes = block_bytes(request, block), size = request->sizes[block];
		char *page = (char *)request->iovs[at->iov].iov_base + at->iov_done;

		if (size == n_bytes) {
			memcpy(page, payload, n_bytes);
		} else if (size != 0) { /* zero blocks stay as mmap made them */
			int n = LZ4_decompress_safe(payload, page, (int)size, (int)n_bytes);

			if (n != (int)n_bytes) {
				errno = EBADMSG;
				die("decoding a block");
			}
		}
		payload += size;
		skip(request, at, n_bytes);
	}
}

static struct job *current;

static void *work(void *payload)
{
	struct chunk chunk;

	while (take(current, &chunk))
		carry(current->request, &chunk, payload);
	return NULL;
}

static void restore_request(const struct request *request)
{
	struct job job = { .request = request, .lock = PTHREAD_MUTEX_INITIALIZER };
	pthread_t threads[MAX_THREADS];

	job.next.offset = request->header.offs;
	current = &job;
	for (int i = 1; i < n_threads; i++)
		if (pthread_create(&threads[i], NULL, work, payloads[i]))
			die("starting a thread");
	work(payloads[0]);
	for (int i = 1; i < n_threads; i++)
		pthread_join(threads[i], NULL);
}

static void map_iovec(const struct iovec *iov)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
	void *got = mmap(iov->iov_base, iov->iov_len, PROT_READ | PROT_WRITE, flags, -1, 0);

	if (got != iov->iov_base)
		die("mapping the memory to restore");
	madvise(got, iov->iov_len, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

static void for_each_iovec(void (*act)(const struct iovec *))
{
	for (size_t i = 0; i < n_requests; i++)
		for (int32_t j = 0; j < requests[i].header.nr_iovs; j++)
			act(&requests[i].iovs[j]);
}

static void unmap_iovec(const struct iovec *iov)
{
	munmap(iov->iov_base, iov->iov_len);
}

static long long now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void read_requests(const char *path)
{
	int fd = open(path, O_RDONLY);
	struct request request;

	if (fd < 0)
		die(path);
	while (read_request(fd, &request)) {
		requests = realloc(requests, (n_requests + 1) * sizeof request);
		if (!requests)
			die("memory for the requests");
		requests[n_requests++] = request;
	}
	close(fd);
}

int main(int argc, char **argv)
{
	char line[64];

	if (argc != 5) {
		fprintf(stderr, "usage: inprocess PAGES REQUESTS THREADS small|huge\n");
		return 2;
	}
	pages_fd = open(argv[1], O_RDONLY);
	if (pages_fd < 0)
		die(argv[1]);
	read_requests(argv[2]);
	n_threads = atoi(argv[3]);
	if (n_threads < 1 || n_threads > MAX_THREADS)
		return 2;
	huge = !strcmp(argv[4], "huge");
	for (int i = 0; i < n_threads; i++)
		payloads[i] = map_buffer(2 * (CHUNK_BYTES + MAX_REGION_BYTES), MADV_HUGEPAGE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "restore\n")) {
			for_each_iovec(map_iovec);
			long long wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);

			for (size_t i = 0; i < n_requests; i++)
				restore_request(&requests[i]);
			cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
			wall = now(CLOCK_MONOTONIC) - wall;
			printf("ok %lld %lld\n", wall, cpu);
		} else {
			for_each_iovec(unmap_iovec);
			puts("ok");
		}
	}
	return 0;
}
