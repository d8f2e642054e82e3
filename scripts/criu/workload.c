/*
 * Processes for a real CRIU to dump, which know what their memory has to hold.
 *
 *     workload DIR memory KIND=MIB...      private memory; KIND: text random zero sparse
 *     workload DIR tree MIB                children with copy-on-write pages, shared memory, memfd
 *     workload DIR threads MIB N           N threads that keep changing and checking memory
 *
 * What a page holds follows from its number and a seed alone, so each process can check its memory
 * by itself, at any time and without a second copy. It is asked through files, so that no socket
 * or terminal is dumped with it: DIR/PID.ask holds one line, SIGUSR1 says that it is there, the
 * answer is DIR/PID.answer. The first answer, to nobody's question, says that the process is ready.
 *
 *     check               every page against what it has to hold: "right N" or "wrong N first ADDR"
 *     walk                reads a word of every page in order: "walked PAGES NANOSECONDS"
 *     random SEED N       reads N pages in random order: "read N median NS p90 NS max NS total NS
 *                         faulted M fault-median NS fault-p90 NS", of those that were not there yet
 *     change SEED N       gives N pages new content
 *     restless ROUNDS     forks, moves, unmaps and drops memory, checking it all along
 *     quit STATUS         ends at once
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define MIB (1ul << 20)
#define MAX_REGIONS 16
#define MAX_ANSWER 4096
#define SPARSE_STEP 3

enum kind { TEXT, RANDOM, ZERO, SPARSE };
static const char *const kind_names[] = { "text", "random", "zero", "sparse" };

/* Memory whose pages hold what fill_page() says for the seed that `seeds` has for each. */
struct region {
	unsigned char *start;
	size_t pages;
	enum kind kind;
	uint32_t *seeds; /* of each page; 0: the page was never written, or dropped */
};

static struct region regions[MAX_REGIONS];
static int n_regions;
static const char *directory;
static char answer[MAX_ANSWER];
static size_t answer_length;

/* The page where the processes of a tree see each other's writes. */
struct shared {
	atomic_uint token;
};
static struct shared *shared_anonymous, *shared_memfd;

static _Atomic unsigned long thread_errors, thread_rounds;

static void die(const char *what)
{
	int error = errno;
	char path[512];

	snprintf(path, sizeof(path), "%s/%d.died", directory, (int)getpid());
	FILE *file = fopen(path, "w");
	if (file) {
		fprintf(file, "%s: %s\n", what, strerror(error));
		fclose(file);
	}
	_exit(99);
}

static void say(const char *format, ...)
{
	va_list words;

	va_start(words, format);
	int n = vsnprintf(answer + answer_length, sizeof(answer) - answer_length, format, words);
	va_end(words);
	if (n < 0 || answer_length + (size_t)n >= sizeof(answer))
		die("the answer is too long");
	answer_length += (size_t)n;
}

static void send_answer(void)
{
	char path[512], temporary[512];

	snprintf(path, sizeof(path), "%s/%d.answer", directory, (int)getpid());
	snprintf(temporary, sizeof(temporary), "%s/%d.part", directory, (int)getpid());
	int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, answer, answer_length) != (ssize_t)answer_length || close(fd) ||
	    rename(temporary, path))
		die("cannot answer");
	answer_length = 0;
}

static uint64_t nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Lines as of a log: an LZ4 block of them is a third of their size. */
static void fill_text(unsigned char *page, uint64_t state)
{
	static const char *const words[] = { "request", "answered", "session", "closed", "worker",
					     "started", "timeout", "queue", "cache miss", "retry" };
	size_t used = 0;

	while (used < PAGE) {
		char line[128];
		uint64_t r = next_random(&state);
		int n = snprintf(line, sizeof(line), "%02u:%02u:%02u.%03u INFO  %s %s %s id=%08x\n",
				 (unsigned)(r % 24), (unsigned)(r >> 8) % 60,
				 (unsigned)(r >> 16) % 60, (unsigned)(r >> 24) % 1000,
				 words[(r >> 32) % 10], words[(r >> 36) % 10], words[(r >> 40) % 10],
				 (unsigned)(r >> 44));
		size_t take = used + (size_t)n > PAGE ? PAGE - used : (size_t)n;
		memcpy(page + used, line, take);
		used += take;
	}
}

static void fill_page(unsigned char *page, enum kind kind, size_t number, uint32_t seed)
{
	uint64_t state = (number + 1) * 0x9e3779b97f4a7c15ull ^ ((uint64_t)seed << 20) ^ seed;

	if (seed == 0 || kind == ZERO) {
		memset(page, 0, PAGE);
	} else if (kind == TEXT) {
		fill_text(page, state);
	} else {
		uint64_t *words = (uint64_t *)page;
		for (size_t i = 0; i < PAGE / sizeof(*words); i++)
			words[i] = next_random(&state);
	}
}

static void *map(size_t bytes, int flags, int fd)
{
	void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (start == MAP_FAILED)
		die("mmap");
	return start;
}

static struct region *add_region(unsigned char *start, size_t pages, enum kind kind, uint32_t seed)
{
	if (n_regions == MAX_REGIONS || !pages)
		die("too many regions, or an empty one");
	struct region *region = &regions[n_regions++];
	*region = (struct region){ start, pages, kind, NULL };
	region->seeds = map(pages * sizeof(uint32_t), MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (size_t i = 0; i < pages; i++) {
		if (kind == SPARSE && i % SPARSE_STEP)
			continue; /* never touched */
		region->seeds[i] = seed;
		fill_page(start + i * PAGE, kind, i, seed);
	}
	return region;
}

static struct region *add_private(size_t bytes, enum kind kind, uint32_t seed)
{
	return add_region(map(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1), bytes / PAGE, kind, seed);
}

static size_t count_wrong(const struct region *region, uintptr_t *first)
{
	static _Thread_local unsigned char expected[PAGE] __attribute__((aligned(8)));
	size_t wrong = 0;

	for (size_t i = 0; i < region->pages; i++) {
		fill_page(expected, region->kind, i, region->seeds[i]);
		if (memcmp(region->start + i * PAGE, expected, PAGE) && !wrong++)
			*first = (uintptr_t)region->start + i * PAGE;
	}
	return wrong;
}

static size_t check(void)
{
	uintptr_t first = 0;
	size_t pages = 0, wrong = 0;

	for (int i = 0; i < n_regions; i++) {
		uintptr_t here = 0;
		size_t n = count_wrong(&regions[i], &here);
		if (n && !wrong)
			first = here;
		wrong += n;
		pages += regions[i].pages;
	}
	if (wrong)
		say("wrong %zu first %#lx\n", wrong, (unsigned long)first);
	else
		say("right %zu\n", pages);
	return wrong;
}

static void walk(void)
{
	uint64_t start = nanoseconds();
	size_t pages = 0;

	for (int i = 0; i < n_regions; i++)
		for (size_t n = 0; n < regions[i].pages; n++, pages++)
			(void)*(volatile uint64_t *)(regions[i].start + n * PAGE);
	say("walked %zu %lu\n", pages, (unsigned long)(nanoseconds() - start));
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void read_randomly(uint64_t seed, size_t count)
{
	uint64_t state = seed * 2 + 1, total = nanoseconds();
	size_t faulted = 0, bytes = 2 * count * sizeof(uint64_t) + PAGE;
	uint64_t *times = map(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uint64_t *faults = times + count;

	if (!count)
		die("nothing to read");
	memset(times, 1, bytes);
	for (size_t i = 0; i < count; i++) {
		struct region *region = &regions[next_random(&state) % (uint64_t)n_regions];
		size_t page = next_random(&state) % region->pages;
		unsigned char *address = region->start + page * PAGE, there = 0;

		if (mincore(address, PAGE, &there))
			die("mincore");
		uint64_t start = nanoseconds();
		(void)*(volatile uint64_t *)address;
		times[i] = nanoseconds() - start;
		if (!(there & 1))
			faults[faulted++] = times[i];
	}
	total = nanoseconds() - total;
	qsort(times, count, sizeof(*times), compare);
	qsort(faults, faulted, sizeof(*faults), compare);
	say("read %zu median %lu p90 %lu max %lu total %lu faulted %zu fault-median %lu"
	    " fault-p90 %lu\n",
	    count, (unsigned long)times[count / 2], (unsigned long)times[count * 9 / 10],
	    (unsigned long)times[count - 1], (unsigned long)total, faulted,
	    (unsigned long)(faulted ? faults[faulted / 2] : 0),
	    (unsigned long)(faulted ? faults[faulted * 9 / 10] : 0));
	munmap(times, bytes);
}

static void change(uint32_t seed, size_t count)
{
	uint64_t state = (uint64_t)seed * 2 + 1;

	for (size_t i = 0; i < count; i++) {
		struct region *region = &regions[next_random(&state) % (uint64_t)n_regions];
		size_t page = next_random(&state) % region->pages;
		region->seeds[page] = seed;
		fill_page(region->start + page * PAGE, region->kind, page, seed);
	}
	say("changed %zu\n", count);
}

/* A child that checks everything and says by its status whether it was right. */
static int fork_and_check(void)
{
	int status;
	pid_t child = fork();

	if (child < 0)
		die("fork");
	if (child == 0) {
		uintptr_t first;
		size_t wrong = 0;
		for (int i = 0; i < n_regions; i++)
			wrong += count_wrong(&regions[i], &first);
		_exit(wrong ? 1 : 0);
	}
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Move a region to another place, where it has to hold the same. */
static void move(struct region *region)
{
	size_t bytes = region->pages * PAGE;
	void *place = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (place == MAP_FAILED ||
	    mremap(region->start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place)
		die("mremap");
	region->start = place;
}

/* Drop an eighth in the middle: it reads as zeros from now on. */
static void drop(struct region *region, size_t turn)
{
	size_t n = region->pages / 8, first = (turn % 6 + 1) * n;

	if (madvise(region->start + first * PAGE, n * PAGE, MADV_DONTNEED))
		die("madvise");
	for (size_t i = first; i < first + n; i++)
		region->seeds[i] = 0;
}

/* Give up the last eighth of a region. */
static void cut(struct region *region)
{
	size_t n = region->pages / 8;

	if (munmap(region->start + (region->pages - n) * PAGE, n * PAGE))
		die("munmap");
	region->pages -= n;
}

static void restless(size_t rounds)
{
	size_t bad_children = 0, wrong = 0;

	for (size_t i = 0; i < rounds; i++) {
		struct region *region = &regions[i % (size_t)n_regions];
		uintptr_t first;
		if (region->pages < 64)
			continue;
		drop(region, i);
		move(region);
		bad_children += !fork_and_check();
		cut(region);
		change((uint32_t)(1000 + i), 16);
		answer_length = 0;
		wrong += count_wrong(region, &first);
	}
	say("restless %zu children-wrong %zu pages-wrong %zu\n", rounds, bad_children, wrong);
	check();
}

static void reply(const char *question)
{
	unsigned long a = 0, b = 0;
	char word[32] = "";

	sscanf(question, "%31s %lu %lu", word, &a, &b);
	if (!strcmp(word, "check"))
		check();
	else if (!strcmp(word, "walk"))
		walk();
	else if (!strcmp(word, "random"))
		read_randomly(a, b);
	else if (!strcmp(word, "change"))
		change((uint32_t)a, b);
	else if (!strcmp(word, "restless"))
		restless(a);
	else if (!strcmp(word, "quit"))
		_exit((int)a);
	else
		say("unknown %s\n", word);
	if (shared_anonymous && !strcmp(word, "check")) {
		if (a) /* the leader is told the token to show the others */
			shared_anonymous->token = shared_memfd->token = (unsigned)a;
		say("token %u %u\n", shared_anonymous->token, shared_memfd->token);
	}
	if (thread_rounds)
		say("threads rounds %lu errors %lu\n", thread_rounds, thread_errors);
}

static void serve(void)
{
	sigset_t signals;
	char path[512], question[128];

	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	snprintf(path, sizeof(path), "%s/%d.ask", directory, (int)getpid());
	say("ready\n");
	send_answer();
	for (;;) {
		if (sigwaitinfo(&signals, NULL) != SIGUSR1)
			continue;
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? -1 : read(fd, question, sizeof(question) - 1);
		if (n < 0 || close(fd) || unlink(path))
			die("cannot read the question");
		question[n] = 0;
		reply(question);
		send_answer();
	}
}

static void block_signals(void)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	sigprocmask(SIG_BLOCK, &signals, NULL);
}

/* Every n-th page of the inherited memory becomes the child's own. */
static void own_every(struct region *region, size_t n, uint32_t seed)
{
	for (size_t i = 0; i < region->pages; i += n) {
		region->seeds[i] = seed;
		fill_page(region->start + i * PAGE, region->kind, i, seed);
	}
}

static void *stand(void *unused)
{
	unsigned char stack[32 * PAGE] __attribute__((aligned(8)));

	(void)unused;
	for (size_t i = 0; i < 32; i++)
		fill_page(stack + i * PAGE, RANDOM, i, 77);
	for (;;) {
		unsigned char expected[PAGE] __attribute__((aligned(8)));
		for (size_t i = 0; i < 32; i++) {
			fill_page(expected, RANDOM, i, 77);
			if (memcmp(stack + i * PAGE, expected, PAGE))
				thread_errors++;
		}
		thread_rounds++;
		usleep(20000);
	}
	return NULL;
}

static void start_thread(void *(*run)(void *), void *argument)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, run, argument))
		die("pthread_create");
}

static void tree(size_t mib)
{
	size_t shared_bytes = 4 * MIB;
	struct region *own = add_private(mib * MIB, TEXT, 1);
	unsigned char *anonymous = map(shared_bytes + PAGE, MAP_SHARED | MAP_ANONYMOUS, -1);
	int fd = memfd_create("workload", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)(shared_bytes + PAGE)))
		die("memfd");
	unsigned char *memfd = map(shared_bytes + PAGE, MAP_SHARED, fd);
	close(fd);
	add_region(anonymous + PAGE, shared_bytes / PAGE, TEXT, 2);
	add_region(memfd + PAGE, shared_bytes / PAGE, RANDOM, 3);
	shared_anonymous = (struct shared *)anonymous;
	shared_memfd = (struct shared *)memfd;
	add_private(mib * MIB / 4, ZERO, 4);

	for (uint32_t child = 0; child < 2; child++) {
		pid_t pid = fork();
		if (pid < 0)
			die("fork");
		if (pid == 0) {
			own_every(own, child ? 2 : 7, 100 + child);
			add_private(MIB, SPARSE, 200 + child);
			start_thread(stand, NULL);
			if (child == 0 && (pid = fork()) == 0) { /* a grandchild */
				own_every(own, 5, 300);
				start_thread(stand, NULL);
			}
			serve();
		}
	}
	start_thread(stand, NULL);
	serve();
}

/* Each thread has a stripe of a region to itself, and changes and checks it all the time. */
struct stripe {
	struct region *region;
	size_t number, count;
};

static void *stir(void *argument)
{
	const struct stripe *stripe = argument;
	struct region *region = stripe->region;
	unsigned char expected[PAGE] __attribute__((aligned(8)));
	uint64_t state = stripe->number * 2 + 1;

	for (;;) {
		size_t pick = next_random(&state) % (region->pages / stripe->count);
		size_t page = pick * stripe->count + stripe->number;
		fill_page(expected, region->kind, page, region->seeds[page]);
		if (memcmp(region->start + page * PAGE, expected, PAGE))
			thread_errors++;
		/* A page that is copied over this, too late, is seen the next time. */
		region->seeds[page] = region->seeds[page] % 1000 + 1;
		fill_page(region->start + page * PAGE, region->kind, page, region->seeds[page]);
		thread_rounds++;
		usleep(500);
	}
	return NULL;
}

static void threads(size_t mib, size_t count)
{
	struct region *still = add_private(mib * MIB, TEXT, 5);
	struct region *busy = add_private(mib * MIB, RANDOM, 6);
	struct stripe *stripes = calloc(count, sizeof(*stripes));

	(void)still;
	if (!count || !stripes)
		die("threads");
	for (size_t i = 0; i < count; i++) {
		stripes[i] = (struct stripe){ busy, i, count };
		start_thread(stir, &stripes[i]);
	}
	n_regions--; /* the threads check the second, which is never still */
	serve();
}

static void memory(char **words, int n)
{
	for (int i = 0; i < n; i++) {
		char *equals = strchr(words[i], '=');
		int kind = 0;
		if (!equals)
			die("KIND=MIB");
		*equals = 0;
		while (kind < 4 && strcmp(kind_names[kind], words[i]))
			kind++;
		if (kind == 4)
			die("unknown kind");
		add_private(strtoul(equals + 1, NULL, 10) * MIB, (enum kind)kind, 10 + (uint32_t)i);
	}
	serve();
}

int main(int n, char **words)
{
	if (n < 4)
		return 2;
	directory = words[1];
	block_signals();
	/* Pages as dumped: no huge page makes a thousand of one. */
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (!strcmp(words[2], "memory"))
		memory(words + 3, n - 3);
	else if (!strcmp(words[2], "tree"))
		tree(strtoul(words[3], NULL, 10));
	else if (!strcmp(words[2], "threads"))
		threads(strtoul(words[3], NULL, 10), n > 4 ? strtoul(words[4], NULL, 10) : 4);
	return 2;
}
