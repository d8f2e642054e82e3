/* The limit of the offline tools: liblz4 on all CPUs, page by page, and nothing else.
 *
 * Nothing is read, written or moved: the pages lie in memory, each is compressed into, or decoded
 * into, the same few bytes of its thread. What compresses with liblz4 cannot be faster than this.
 *
 *   liblz4alone compress|decompress PAGES THREADS
 *
 * PAGES is a file of whole pages. Zero pages are found and left out. The answer is the nanoseconds
 * it took, on a line by itself.
 */
#define _GNU_SOURCE
#include <lz4.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE 4096
#define BOUND LZ4_COMPRESSBOUND(PAGE)
#define MAX_THREADS 256

static const char zeros[PAGE];
static char *pages;
static char *blocks; /* PAGE bytes for each page; as long as the page when it is stored raw */
static int *sizes;
static size_t n_pages, n_threads;
static int decompress;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int compress_page(const char *page, char *block)
{
	if (!memcmp(page, zeros, PAGE))
		return 0;
	return LZ4_compress_fast(page, block, PAGE, BOUND, 1);
}

static void *work(void *number)
{
	size_t first = n_pages * (uintptr_t)number / n_threads;
	size_t end = n_pages * ((uintptr_t)number + 1) / n_threads;
	char scratch[BOUND];

	for (size_t i = first; i < end; i++) {
		if (!decompress) {
			compress_page(pages + i * PAGE, scratch);
		} else if (sizes[i] && sizes[i] < PAGE) {
			int n = LZ4_decompress_safe(blocks + i * PAGE, scratch, sizes[i], PAGE);
			if (n != PAGE) {
				fprintf(stderr, "page %zu decodes to %d bytes\n", i, n);
				exit(1);
			}
		}
	}
	return NULL;
}

static void load(const char *path)
{
	FILE *file = fopen(path, "rb");
	if (!file || fseek(file, 0, SEEK_END))
		fail(path);
	n_pages = ftell(file) / PAGE;
	rewind(file);
	pages = malloc(n_pages * PAGE + 1);
	if (!pages || fread(pages, PAGE, n_pages, file) != n_pages)
		fail(path);
	fclose(file);
}

static void compress_all(void)
{
	char block[BOUND];

	blocks = malloc(n_pages * PAGE + 1);
	sizes = malloc(n_pages * sizeof(*sizes) + 1);
	if (!blocks || !sizes)
		fail("malloc");
	for (size_t i = 0; i < n_pages; i++) {
		sizes[i] = compress_page(pages + i * PAGE, block);
		if (sizes[i] < PAGE)
			memcpy(blocks + i * PAGE, block, sizes[i]);
	}
}

int main(int argc, char **argv)
{
	pthread_t threads[MAX_THREADS];
	struct timespec start, end;

	if (argc != 4 || (n_threads = atoi(argv[3])) < 1 || n_threads > MAX_THREADS) {
		fprintf(stderr, "usage: liblz4alone compress|decompress PAGES THREADS\n");
		return 2;
	}
	decompress = !strcmp(argv[1], "decompress");
	load(argv[2]);
	if (decompress)
		compress_all();
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (uintptr_t i = 0; i < n_threads; i++)
		if (pthread_create(&threads[i], NULL, work, (void *)i))
			fail("pthread_create");
	for (size_t i = 0; i < n_threads; i++)
		pthread_join(threads[i], NULL);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%lld\n", (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec);
	return 0;
}
