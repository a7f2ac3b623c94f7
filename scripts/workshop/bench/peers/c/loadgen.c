/* A closed loop of HTTP/1.1 requests on one epoll thread; prints one JSON object of what came of them.
 *
 *   loadgen -p PORT -B FILE [-u PATH] [-c CONNECTIONS] [-d SECONDS | -n REQUESTS] [-t]
 *           [-s -k CHUNKS] [-r MICROSECONDS]
 *
 *   -B  bodies, sent in turns: after a line "BYTES OFFSET" a body, and so on. At OFFSET stand 17 characters in
 *       whose place each request has a number of its own: digits and commas, or with -t three token ids
 *   -s  answers are streams of so many chunks; their "ts" tells when each was sent (see fakevllm.c)
 *   -r  connections send their first requests spread over so long
 *
 * "badstatus": answers that are not 200; "incomplete": streams with another number of chunks, or without [DONE];
 * "errors": connections that broke. Latencies are in microseconds: lat from request to end of the answer, ttft
 * to its first chunk, lag from a chunk's "ts" to its arrival.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TS_BASE 1000000000000000000LL
#define TS_NAME "\"ts\":"
#define TS_BYTES 24   /* name and 19 digits */
#define KEPT (TS_BYTES - 1) /* of what was read last: a "ts" may be cut, and is never seen twice */
#define PATIENCE_NS 60000000000LL

enum { HEAD, COUNTED, SIZE, DATA, DATA_END, TRAILERS, UNTIL_CLOSE };

typedef struct {
    int fd, busy;
    int64_t begun, first;
    char *request;
    size_t len, cap, sent;
    int state, status, closing;
    char head[16384];
    int head_len;
    char line[64];
    int line_len;
    long left;
    char kept[KEPT];
    int kept_len;
    long chunks;
    int done;
} conn;

typedef struct {
    uint32_t *at; /* 0.1 us each */
    size_t len, cap;
} samples;
static samples latencies, first_chunks, lags;

typedef struct {
    char *request;
    size_t len, number_at;
} body;
static body *bodies;
static int n_bodies, with_ids;

static int ep, port, at_once = 1, streaming;
static long chunks_wanted, ramp_us, most;
static double seconds = 3;
static const char *path = "/v1/chat/completions";
static long issued, completed, errors, chunks, bytes, connects, badstatus, incomplete;
static int64_t begun, over;
static uint64_t sequence;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static void note(samples *s, int64_t ns) {
    if (s->len == s->cap) s->at = realloc(s->at, (s->cap = s->cap ? s->cap * 2 : 65536) * sizeof *s->at);
    int64_t value = ns < 0 ? 0 : ns / 100;
    s->at[s->len++] = value > UINT32_MAX ? UINT32_MAX : value;
}

/* Requests. */

static int read_bodies(const char *file) {
    FILE *f = fopen(file, "rb");
    long n, number_at;
    if (!f) return -1;
    while (fscanf(f, "%ld %ld", &n, &number_at) == 2 && fgetc(f) == '\n') {
        char *r = malloc(n + 1024);
        int head = snprintf(r, 1024,
            "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: loadgen/1\r\nAccept: */*\r\n"
            "Content-Type: application/json\r\nAuthorization: Bearer sk-none\r\nContent-Length: %ld\r\n\r\n",
            path, port, n);
        if (fread(r + head, 1, n, f) != (size_t)n) return -1;
        bodies = realloc(bodies, (n_bodies + 1) * sizeof *bodies);
        bodies[n_bodies++] = (body){r, head + n, head + number_at};
    }
    fclose(f);
    return n_bodies ? 0 : -1;
}
/* 17 characters, as bodies.py has them; scrambled, so that neighbours differ early (the factor is prime to 10). */
static void put_number(char *p, uint64_t n) {
    char text[32];
    uint64_t digits = with_ids ? 1000000000000ULL : 1000000000ULL;
    n = (unsigned __int128)n * 2654435761u % digits;
    if (with_ids) {
        sprintf(text, "1%04d,1%04d,1%04d", (int)(n / 100000000), (int)(n / 10000 % 10000), (int)(n % 10000));
        memcpy(p, text, 17);
        return;
    }
    for (int i = 0; i < 9; i++, n /= 10) {
        p[2 * i] = '0' + n % 10;
        if (i < 8) p[2 * i + 1] = ',';
    }
}
static int push(conn *c) {
    while (c->sent < c->len) {
        ssize_t w = send(c->fd, c->request + c->sent, c->len - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (w < 0) return errno == EAGAIN ? 0 : -1;
        c->sent += w;
    }
    return 0;
}
static int ended(void) { return most ? issued >= most : now_ns() >= over; }
static int begin(conn *c) {
    c->busy = !ended();
    if (!c->busy) return 0;
    issued++;
    body *b = &bodies[sequence % n_bodies];
    if (c->cap < b->len) c->request = realloc(c->request, c->cap = b->len);
    memcpy(c->request, b->request, b->len);
    put_number(c->request + b->number_at, sequence++);
    c->len = b->len;
    c->sent = 0;
    c->state = HEAD;
    c->head_len = c->line_len = c->kept_len = c->chunks = c->done = c->closing = 0;
    c->first = 0;
    c->begun = now_ns();
    return push(c);
}
static int open_connection(conn *c) {
    int on = 1;
    struct sockaddr_in to = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (void *)&to, sizeof to)) return -1;
    connects++;
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    return epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}
static void again(conn *c) { /* after a break */
    errors++;
    close(c->fd);
    if (open_connection(c) < 0 || begin(c) < 0) errors++;
}

/* Answers. */

static void saw_chunk(conn *c, const char *digits, int64_t now) {
    int64_t ts = 0;
    for (int i = 0; i < 19; i++) ts = ts * 10 + (digits[i] - '0');
    note(&lags, now - ts + TS_BASE);
    chunks++;
    c->chunks++;
    if (c->first) return;
    c->first = now;
    note(&first_chunks, now - c->begun);
}
static void scan(conn *c, const char *from, const char *upto, const char *end, int64_t now) {
    /* Chunks that begin before `upto`. */
    const char *at = from;
    while ((at = memmem(at, end - at, TS_NAME, strlen(TS_NAME))) && at < upto && end - at >= TS_BYTES) {
        saw_chunk(c, at + strlen(TS_NAME), now);
        at += TS_BYTES;
    }
}
static void read_body(conn *c, const char *p, long n, int64_t now) {
    char joint[2 * KEPT];
    bytes += n;
    if (!streaming) return;
    long more = n < KEPT ? n : KEPT;
    memcpy(joint, c->kept, c->kept_len);
    memcpy(joint + c->kept_len, p, more);
    scan(c, joint, joint + c->kept_len, joint + c->kept_len + more, now);
    scan(c, p, p + n, p + n, now);
    if (memmem(joint, c->kept_len + more, "[DONE]", 6)) c->done = 1;
    if (n > KEPT && memmem(p + n - KEPT, KEPT, "[DONE]", 6)) c->done = 1;
    if (n >= KEPT) {
        memcpy(c->kept, p + n - KEPT, KEPT);
        c->kept_len = KEPT;
        return;
    }
    long keep = c->kept_len + n > KEPT ? KEPT - n : c->kept_len;
    memmove(c->kept, c->kept + c->kept_len - keep, keep);
    memcpy(c->kept + keep, p, n);
    c->kept_len = keep + n;
}
static int complete(conn *c, int64_t now) {
    if (c->status != 200) badstatus++;
    else if (streaming && (c->chunks != chunks_wanted || !c->done)) incomplete++;
    completed++;
    note(&latencies, now - c->begun);
    if (c->closing) {
        close(c->fd);
        if (open_connection(c) < 0) return -1;
    }
    return begin(c);
}
static const char *header(const char *head, const char *name) {
    size_t n = strlen(name);
    for (const char *p = head; (p = strstr(p, "\r\n"));) {
        p += 2;
        if (strncasecmp(p, name, n) || p[n] != ':') continue;
        for (p += n + 1; *p == ' '; p++) {}
        return p;
    }
    return NULL;
}
/* How many bytes of what came belong to the head; -1 if it is too long. */
static long read_head(conn *c, const char *p, long n, int64_t now) {
    long room = sizeof c->head - 1 - c->head_len, taken = n < room ? n : room;
    int before = c->head_len, look = before > 3 ? before - 3 : 0;
    memcpy(c->head + before, p, taken);
    c->head_len += taken;
    char *e = memmem(c->head + look, c->head_len - look, "\r\n\r\n", 4);
    if (!e) return taken < n ? -1 : n;
    long used = e + 4 - c->head - before;
    e[2] = 0;
    c->status = atoi(c->head + 9);
    if (c->status == 100) {
        c->head_len = 0;
        return used;
    }
    const char *connection = header(c->head, "connection"), *length = header(c->head, "content-length");
    const char *encoding = header(c->head, "transfer-encoding");
    c->closing = (connection && !strncasecmp(connection, "close", 5)) || !strncmp(c->head, "HTTP/1.0", 8);
    if (encoding && !strncasecmp(encoding, "chunked", 7)) {
        c->state = SIZE;
    } else if (length) {
        c->state = COUNTED;
        c->left = atol(length);
        if (!c->left && complete(c, now) < 0) return -1;
    } else {
        c->state = UNTIL_CLOSE;
        c->closing = 1;
    }
    return used;
}
static int read_line(conn *c, const char **p, const char *end) { /* 1 if it is whole */
    while (*p < end) {
        char x = *(*p)++;
        if (c->line_len < (int)sizeof c->line - 1) c->line[c->line_len++] = x;
        if (x == '\n') {
            c->line[c->line_len] = 0;
            return 1;
        }
    }
    return 0;
}
static int take(conn *c, const char *p, long n, int64_t now) {
    for (const char *end = p + n; p < end;) {
        long some = end - p < c->left ? end - p : c->left;
        switch (c->state) {
        case HEAD:
            some = read_head(c, p, end - p, now);
            if (some < 0) return -1;
            p += some;
            break;
        case COUNTED:
        case DATA:
        case DATA_END:
            if (c->state != DATA_END) read_body(c, p, some, now);
            p += some;
            c->left -= some;
            if (c->left) break;
            if (c->state == COUNTED && complete(c, now) < 0) return -1;
            else if (c->state == DATA) c->state = DATA_END, c->left = 2;
            else if (c->state == DATA_END) c->state = SIZE;
            break;
        case SIZE:
            if (!read_line(c, &p, end)) break;
            c->line_len = 0;
            c->left = strtol(c->line, NULL, 16);
            c->state = c->left ? DATA : TRAILERS;
            break;
        case TRAILERS:
            if (!read_line(c, &p, end)) break;
            int last = c->line[0] == '\r' || c->line[0] == '\n';
            c->line_len = 0;
            if (last && complete(c, now) < 0) return -1;
            break;
        case UNTIL_CLOSE:
            read_body(c, p, end - p, now);
            return 0;
        }
    }
    return 0;
}
static void on_ready(conn *c, unsigned events) {
    static char buffer[1 << 18];
    int fd = c->fd;
    if (events & EPOLLOUT && c->busy && c->sent < c->len && push(c) < 0) return again(c);
    for (;;) {
        ssize_t got = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN) return;
        if (got > 0) {
            if (take(c, buffer, got, now_ns()) < 0) return again(c);
            if (c->fd != fd || got < (ssize_t)sizeof buffer) return;
            continue;
        }
        if (c->busy && c->state == UNTIL_CLOSE) {
            if (complete(c, now_ns()) < 0) errors++;
        } else if (c->busy) {
            again(c);
        } else {
            close(c->fd);
        }
        return;
    }
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}
static void print_samples(const char *name, samples *s) {
    if (!s->len) {
        printf(",\"%s\":null", name);
        return;
    }
    qsort(s->at, s->len, sizeof *s->at, by_value);
    printf(",\"%s\":{\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, s->at[s->len / 2] / 10.,
        s->at[s->len * 9 / 10] / 10., s->at[s->len * 99 / 100] / 10., s->at[s->len - 1] / 10.);
}
static int busy(const conn *all) {
    for (int i = 0; i < at_once; i++)
        if (all[i].busy) return 1;
    return 0;
}

int main(int argc, char **argv) {
    const char *file = NULL;
    int o, started = 0;
    signal(SIGPIPE, SIG_IGN);
    while ((o = getopt(argc, argv, "p:B:u:c:d:n:tsk:r:")) != -1) {
        if (o == 'p') port = atoi(optarg);
        else if (o == 'B') file = optarg;
        else if (o == 'u') path = optarg;
        else if (o == 'c') at_once = atoi(optarg);
        else if (o == 'd') seconds = atof(optarg);
        else if (o == 'n') most = atol(optarg);
        else if (o == 't') with_ids = 1;
        else if (o == 's') streaming = 1;
        else if (o == 'k') chunks_wanted = atol(optarg);
        else if (o == 'r') ramp_us = atol(optarg);
        else return 2;
    }
    if (!file || read_bodies(file) < 0) {
        fprintf(stderr, "%s: no bodies\n", file ? file : "-B");
        return 2;
    }
    ep = epoll_create1(0);
    sequence = (uint64_t)(now_ns() / 1000); /* not what an earlier run had */
    sequence -= sequence % n_bodies;
    conn *all = calloc(at_once, sizeof *all);
    for (int i = 0; i < at_once; i++) {
        if (open_connection(&all[i]) < 0) {
            perror("connect");
            return 1;
        }
    }
    int64_t step = ramp_us * 1000 / at_once;
    begun = now_ns();
    over = begun + (int64_t)(seconds * 1e9);
    int64_t give_up = (most ? begun : over) + PATIENCE_NS;
    while (errors <= 1000 && now_ns() < give_up) {
        struct epoll_event events[256];
        for (; started < at_once && begun + started * step <= now_ns(); started++)
            if (begin(&all[started]) < 0) errors++;
        if (started == at_once && ended() && !busy(all)) break;
        int n = epoll_wait(ep, events, 256, started < at_once ? 1 : 50);
        for (int i = 0; i < n; i++) on_ready(events[i].data.ptr, events[i].events);
    }
    double took = (now_ns() - begun) / 1e9;
    struct timespec cpu;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    incomplete += busy(all);
    printf("{\"elapsed\":%.4f,\"issued\":%ld,\"completed\":%ld,\"errors\":%ld,\"badstatus\":%ld,\"incomplete\":%ld,"
        "\"connects\":%ld,\"chunks\":%ld,\"bytes\":%ld,\"cpu\":%.4f", took, issued, completed, errors, badstatus,
        incomplete, connects, chunks, bytes, cpu.tv_sec + cpu.tv_nsec / 1e9);
    print_samples("lat_us", &latencies);
    print_samples("ttft_us", &first_chunks);
    print_samples("lag_us", &lags);
    printf("}\n");
    return 0;
}
