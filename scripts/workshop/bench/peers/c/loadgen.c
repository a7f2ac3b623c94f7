/* loadgen: closed-loop HTTP/1.1 load generator on one epoll thread, for LLM
 * proxies.  Prints one JSON object.
 *
 *   loadgen -p PORT [-c CONNS] [-d SECONDS | -n REQUESTS] [-s] [-k MAX_TOKENS]
 *           [-i MICROSECONDS_BETWEEN_CHUNKS] [-b BODY_BYTES] [-u PATH] [-m MODEL]
 *           [-g PREFIX_GROUPS] [-w] [-r]
 *
 *   -s stream; without it unary.  -w stop at the end of the window without
 *   waiting for streams under way.  -r ramp: spread stream starts over one interval.
 *   TTFT = request written -> first SSE event seen.  lag = chunk seen here minus
 *   its "ts" - 10^18 (both CLOCK_MONOTONIC of this machine).
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

typedef struct conn {
    int fd, id; int busy; int64_t t0, tfirst, start_at;
    char *req; size_t reqlen, reqcap, sent;
    /* response parsing */
    int st;                 /* 0 head, 1 fixed body, 2 chunk size, 3 chunk data, 4 chunk crlf, 5 trailer, 6 until close */
    char head[16384]; int hl; long need; int status; int close_after;
    char line[64]; int ll;
    /* event scanning across read boundaries */
    char carry[128]; int cl; long events; int sse; int done_seen;
} conn;

static int ep, port = 8000, C = 1, stream = 0, K = 16, G, nowait = 0, ramp = 0; static long interval_us = 0, N = 0; static double D = 3;
static const char *path = "/v1/chat/completions";
static uint32_t *lat, *ttft, *lag; static size_t nlat, nttft, nlag, clat, cttft, clag;
static long issued, completed, errors, chunks, bytes, connects, badstatus, incomplete; static int64_t tstart, tend; static long seqno;

static int64_t now_ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }
static void push(uint32_t **a, size_t *n, size_t *c, int64_t ns) { if (*n == *c) { *c = *c ? *c * 2 : 65536; *a = realloc(*a, *c * 4); } if (ns < 0) ns = 0; int64_t v = ns / 100; (*a)[(*n)++] = v > 0xffffffffu ? 0xffffffffu : v; } /* 0.1 us units */

/* Bodies, each after a line "LENGTH OFFSET": at OFFSET stands what makes each request's prompt another's. */
static char **tmpl; static size_t *tlen, *tctr; static int ids;
static int read_bodies(const char *file) {
    FILE *f = fopen(file, "rb"); if (!f) { perror(file); return -1; }
    long n, at; G = 0;
    while (fscanf(f, "%ld %ld", &n, &at) == 2 && fgetc(f) == '\n') {
        tmpl = realloc(tmpl, (G + 1) * sizeof *tmpl); tlen = realloc(tlen, (G + 1) * sizeof *tlen); tctr = realloc(tctr, (G + 1) * sizeof *tctr);
        char *b = malloc(n + 512); int h = sprintf(b, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: loadgen/1\r\nAccept: */*\r\nContent-Type: application/json\r\nAuthorization: Bearer sk-none\r\nContent-Length: %ld\r\n\r\n", path, port, n);
        if (fread(b + h, 1, n, f) != (size_t)n) { fprintf(stderr, "%s is cut short\n", file); return -1; }
        tmpl[G] = b; tlen[G] = h + n; tctr[G] = h + at; G++;
    }
    fclose(f); if (!G) { fprintf(stderr, "%s holds no body\n", file); return -1; }
    return 0;
}
/* 17 characters: a number of 17 digits, or three token ids of five. Scrambled, so that neighbours differ early. */
static void unlike(char *p, uint64_t seq) {
    char t[40]; uint64_t x = (uint64_t)((unsigned __int128)seq * 2654435761u % 1000000000000ULL);
    if (ids) sprintf(t, "1%04d,1%04d,1%04d", (int)(x / 100000000), (int)(x / 10000 % 10000), (int)(x % 10000));
    else sprintf(t, "00000%012lu", (unsigned long)x);
    memcpy(p, t, 17);
}

static int csocket(conn *c) {
    c->fd = socket(AF_INET, SOCK_STREAM, 0); int one = 1; setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    if (connect(c->fd, (void *)&a, sizeof a)) { perror("connect"); return -1; }
    int fl = 0; (void)fl; connects++;
    struct epoll_event e = { .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c }; epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
    return 0;
}
static int csend(conn *c) { while (c->sent < c->reqlen) { ssize_t w = send(c->fd, c->req + c->sent, c->reqlen - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT); if (w < 0) return errno == EAGAIN ? 0 : -1; c->sent += w; } return 0; }
static int begin(conn *c) {
    if ((N && issued >= N) || (!N && now_ns() >= tend)) { c->busy = 0; return 0; }
    issued++; c->busy = 1; int g = seqno % G;
    if (c->reqcap < tlen[g]) { c->reqcap = tlen[g]; c->req = realloc(c->req, c->reqcap); }
    memcpy(c->req, tmpl[g], tlen[g]); c->reqlen = tlen[g]; unlike(c->req + tctr[g], seqno++);
    c->sent = 0; c->st = 0; c->hl = 0; c->ll = 0; c->cl = 0; c->events = 0; c->done_seen = 0; c->tfirst = 0; c->close_after = 0; c->t0 = now_ns();
    return csend(c);
}

static void body_data(conn *c, const char *p, long n, int64_t now) {
    bytes += n; if (!stream) return;
    /* scan for "ts": <19 digits>; keep a carry of up to 40 bytes */
    char joint[256]; 
    if (c->cl) { /* look at the boundary */
        long take = n < 64 ? n : 64; memcpy(joint, c->carry, c->cl); memcpy(joint + c->cl, p, take); long jn = c->cl + take;
        char *f = joint, *e = joint + jn;
        while ((f = memmem(f, e - f, "\"ts\":", 5))) { if (f >= joint + c->cl) break; if (e - f < 24) break; if (1) { int64_t ts = 0; for (int i = 0; i < 19; i++) ts = ts * 10 + (f[5 + i] - '0'); push(&lag, &nlag, &clag, now - ts + 1000000000000000000LL); chunks++; c->events++; if (!c->tfirst) { c->tfirst = now; push(&ttft, &nttft, &cttft, now - c->t0); } } f += 24; }
        if (n < 64) { /* tiny piece: keep accumulating */ }
    }
    const char *f = p, *e = p + n;
    while ((f = memmem(f, e - f, "\"ts\":", 5))) { if (e - f < 24) break; int64_t ts = 0; for (int i = 0; i < 19; i++) ts = ts * 10 + (f[5 + i] - '0'); push(&lag, &nlag, &clag, now - ts + 1000000000000000000LL); chunks++; c->events++; if (!c->tfirst) { c->tfirst = now; push(&ttft, &nttft, &cttft, now - c->t0); } f += 24; }
    if (n >= 6 ? memmem(p + (n > 24 ? n - 24 : 0), n > 24 ? 24 : n, "[DONE]", 6) != NULL : 0) c->done_seen = 1;
    /* carry: last up to 23 bytes, so that a complete match is never counted twice */
    if (n >= 23) { memcpy(c->carry, e - 23, 23); c->cl = 23; }
    else { long keep = c->cl + n > 23 ? 23 - n : c->cl; if (keep < 0) keep = 0; memmove(c->carry, c->carry + c->cl - keep, keep); memcpy(c->carry + keep, p, n); c->cl = keep + n; }
}
static const char *hdr(const char *head, const char *name) { size_t l = strlen(name); const char *p = head; while ((p = strstr(p, "\r\n"))) { p += 2; if (!strncasecmp(p, name, l) && p[l] == ':') { p += l + 1; while (*p == ' ') p++; return p; } } return NULL; }

static int complete(conn *c, int64_t now) {
    if (c->status != 200) badstatus++;
    else if (stream && c->events != K) { incomplete++; }
    completed++; push(&lat, &nlat, &clat, now - c->t0);
    if (c->close_after) { close(c->fd); if (csocket(c) < 0) return -1; }
    return begin(c);
}
/* feed bytes; returns -1 on error */
static int feed(conn *c, const char *p, long n, int64_t now) {
    while (n > 0) switch (c->st) {
        case 0: {
            long room = sizeof c->head - 1 - c->hl; long t = n < room ? n : room; int old = c->hl;
            memcpy(c->head + c->hl, p, t); c->hl += t; c->head[c->hl] = 0;
            char *e = memmem(c->head + (old > 3 ? old - 3 : 0), c->hl - (old > 3 ? old - 3 : 0), "\r\n\r\n", 4);
            if (!e) { if (t < n) return -1; return 0; }
            long used = (e + 4 - c->head) - old; p += used; n -= used; e[2] = 0;
            c->status = atoi(c->head + 9); const char *v = hdr(c->head, "connection"); c->close_after = (v && !strncasecmp(v, "close", 5)) || !strncmp(c->head, "HTTP/1.0", 8);
            if (c->status == 100) { c->hl = 0; break; }
            v = hdr(c->head, "transfer-encoding"); const char *w = hdr(c->head, "content-length");
            if (v && !strncasecmp(v, "chunked", 7)) { c->st = 2; c->ll = 0; }
            else if (w) { c->need = atol(w); c->st = 1; if (!c->need) { if (complete(c, now) < 0) return -1; if (n) return 0; } }
            else { c->st = 6; c->close_after = 1; }
            break; }
        case 1: { long t = n < c->need ? n : c->need; body_data(c, p, t, now); p += t; n -= t; c->need -= t; if (!c->need) return complete(c, now); break; }
        case 2: { while (n) { char x = *p++; n--; if (c->ll < 60) c->line[c->ll++] = x; if (x == '\n') { c->line[c->ll] = 0; c->need = strtol(c->line, NULL, 16); c->ll = 0; c->st = c->need ? 3 : 5; break; } } break; }
        case 3: { long t = n < c->need ? n : c->need; body_data(c, p, t, now); p += t; n -= t; c->need -= t; if (!c->need) { c->st = 4; c->need = 2; } break; }
        case 4: { long t = n < c->need ? n : c->need; p += t; n -= t; c->need -= t; if (!c->need) c->st = 2; break; }
        case 5: { while (n) { char x = *p++; n--; if (x == '\n') { if (c->ll == 0) { c->st = 0; return complete(c, now); } c->ll = 0; } else if (x != '\r') c->ll++; } break; }
        case 6: body_data(c, p, n, now); n = 0; break;
    }
    return 0;
}
static int cmp(const void *a, const void *b) { uint32_t x = *(uint32_t *)a, y = *(uint32_t *)b; return x < y ? -1 : x > y; }
static void stats(const char *name, uint32_t *a, size_t n) {
    if (!n) { printf(",\"%s\":null", name); return; } qsort(a, n, 4, cmp); double m = 0; for (size_t i = 0; i < n; i++) m += a[i];
    printf(",\"%s\":{\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f,\"mean\":%.1f}", name, a[n / 2] / 10., a[(size_t)(n * .9)] / 10., a[(size_t)(n * .99)] / 10., a[n - 1] / 10., m / n / 10.);
}
int main(int argc, char **argv) {
    int o; const char *file = NULL; signal(SIGPIPE, SIG_IGN);
    while ((o = getopt(argc, argv, "p:c:d:n:sk:i:B:u:twr")) != -1) switch (o) {
        case 'p': port = atoi(optarg); break; case 'c': C = atoi(optarg); break; case 'd': D = atof(optarg); break; case 'n': N = atol(optarg); break;
        case 's': stream = 1; break; case 'k': K = atoi(optarg); break; case 'i': interval_us = atol(optarg); break; case 'B': file = optarg; break; case 't': ids = 1; break;
        case 'u': path = optarg; break; case 'w': nowait = 1; break; case 'r': ramp = 1; break; default: return 2; }
    ep = epoll_create1(0); if (!file || read_bodies(file)) return 2; seqno = (long)(now_ns() & 0xffffff) << 20;
    seqno -= seqno % G;
    conn *cs = calloc(C, sizeof *cs); tstart = now_ns(); tend = tstart + (int64_t)(D * 1e9);
    for (int i = 0; i < C; i++) { cs[i].id = i; if (csocket(&cs[i])) return 1; }
    int started = 0; int64_t step = ramp && C > 0 ? interval_us * 1000 / C : 0; tstart = now_ns(); tend = tstart + (int64_t)(D * 1e9);
    static char buf[1 << 18]; struct epoll_event ev[256]; int64_t hard = tend + (nowait ? 0 : 120000000000LL); if (N) hard = tstart + 120000000000LL;
    for (;;) {
        int64_t now = now_ns();
        while (started < C && tstart + started * step <= now) { if (begin(&cs[started]) < 0) errors++; started++; }
        if (now > hard) break;
        if (started == C) { int busy = 0; if (nowait && !N && now >= tend) break; if ((N && issued >= N) || (!N && now >= tend)) { for (int i = 0; i < C; i++) busy += cs[i].busy; if (!busy) break; } }
        int n = epoll_wait(ep, ev, 256, started < C ? 1 : 50); now = now_ns();
        for (int i = 0; i < n; i++) {
            conn *c = ev[i].data.ptr; int fd = c->fd;
            if (ev[i].events & EPOLLOUT && c->busy && c->sent < c->reqlen && csend(c) < 0) { errors++; }
            for (;;) {
                ssize_t r = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);
                if (r < 0) { if (errno == EAGAIN) break; r = 0; }
                if (r == 0) { close(c->fd); if (c->busy && c->st == 6) { if (complete(c, now) < 0) errors++; break; } if (c->busy) errors++; if (csocket(c) < 0 || begin(c) < 0) errors++; break; }
                if (feed(c, buf, r, now_ns()) < 0) { errors++; close(c->fd); if (csocket(c) < 0 || begin(c) < 0) errors++; break; }
                if (c->fd != fd || r < (ssize_t)sizeof buf) break;
            }
        }
        if (errors > 1000) break;
    }
    double el = (now_ns() - tstart) / 1e9; struct timespec cpu; clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    printf("{\"elapsed\":%.4f,\"issued\":%ld,\"completed\":%ld,\"errors\":%ld,\"badstatus\":%ld,\"incomplete\":%ld,\"connects\":%ld,\"rps\":%.1f,\"chunks\":%ld,\"cps\":%.1f,\"bytes\":%ld,\"cpu\":%.4f", el, issued, completed, errors, badstatus, incomplete, connects, completed / el, chunks, chunks / el, bytes, cpu.tv_sec + cpu.tv_nsec / 1e9);
    stats("lat_us", lat, nlat); stats("ttft_us", ttft, nttft); stats("lag_us", lag, nlag); printf("}\n"); return 0;
}
