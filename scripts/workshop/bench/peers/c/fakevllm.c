/* fakevllm: a fake vLLM/OpenAI backend on one epoll thread, cheap enough not
 * to be the bottleneck of a proxy benchmark.
 *
 *   fakevllm -l PORT [-l PORT ...] [-P PORT ...] [-m MODEL] [-z CHUNK_BYTES] [-v]
 *
 *   -v  trace requests to stderr
 *   -l  decode / regular port         -P  prefill port (always answers one token)
 *   POST /v1/completions, /v1/chat/completions; GET anything else (/v1/models,
 *   /health, /metrics, ...).  Knobs travel inside the JSON body so that every
 *   router passes them on:  "max_tokens": K chunks,  "seed": microseconds
 *   between chunks,  "stream": true|false.  A body with "do_remote_decode":true
 *   is a prefill leg and is answered with kv_transfer_params.  Each SSE chunk
 *   carries "ts": 10^18 + CLOCK_MONOTONIC ns at emission, so that a client on the same
 *   machine can measure the delay the router adds to every single chunk.
 *   Knobs are looked up only in the first 1.5 KB and last 4 KB of a body.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
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
    int fd, listener, prefill, port;
    char *in; size_t inlen, incap;
    char *out; size_t outoff, outlen, outcap;
    long body_off, body_len;      /* -1 unknown */
    int chunked_req, expect_sent;
    /* stream */
    int streaming, blocked, chat; long left; int64_t due, interval; int heap_pos;
    int want_close;
} conn;

static int ep; static const char *model = "m"; static int chunk_bytes = 250;
static unsigned long n_req, n_prefill, n_decode, n_handed, n_chunks; static long running;
static conn **heap; static int hn, hcap;

static int64_t now_ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }

static void hswap(int a, int b) { conn *t = heap[a]; heap[a] = heap[b]; heap[b] = t; heap[a]->heap_pos = a; heap[b]->heap_pos = b; }
static void hup(int i) { while (i && heap[(i - 1) / 2]->due > heap[i]->due) { hswap(i, (i - 1) / 2); i = (i - 1) / 2; } }
static void hdown(int i) { for (;;) { int l = 2 * i + 1, m = i; if (l < hn && heap[l]->due < heap[m]->due) m = l; if (l + 1 < hn && heap[l + 1]->due < heap[m]->due) m = l + 1; if (m == i) return; hswap(i, m); i = m; } }
static void hpush(conn *c) { if (hn == hcap) { hcap = hcap ? hcap * 2 : 256; heap = realloc(heap, hcap * sizeof *heap); } heap[hn] = c; c->heap_pos = hn; hup(hn++); }
static void hdel(conn *c) { int i = c->heap_pos; if (i < 0) return; hn--; if (i != hn) { heap[i] = heap[hn]; heap[i]->heap_pos = i; hup(i); hdown(i); } c->heap_pos = -1; }

static void set_events(conn *c, int out) { struct epoll_event e = { .events = EPOLLIN | EPOLLRDHUP | (out ? EPOLLOUT : 0), .data.ptr = c }; epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e); }
static void cclose(conn *c) { if (c->streaming) running--; hdel(c); close(c->fd); free(c->in); free(c->out); free(c); }

/* returns -1 when the connection is dead */
static int cwrite(conn *c, const char *p, size_t n) {
    if (c->outlen == c->outoff) {
        ssize_t w = send(c->fd, p, n, MSG_NOSIGNAL);
        if (w < 0) { if (errno != EAGAIN) return -1; w = 0; }
        if ((size_t)w == n) return 0;
        p += w; n -= w; c->outoff = c->outlen = 0;
    }
    if (c->outlen + n > c->outcap) { c->outcap = (c->outlen + n) * 2; c->out = realloc(c->out, c->outcap); }
    memcpy(c->out + c->outlen, p, n); c->outlen += n; c->blocked = 1; set_events(c, 1);
    return 0;
}

static const char *find(const char *b, long n, const char *k) { return memmem(b, n, k, strlen(k)); }
static const char *knob(const char *b, long n, const char *k) {
    const char *r; if (n <= 5600) r = find(b, n, k);
    else { r = find(b + n - 4096, 4096, k); if (!r) r = find(b, 1500, k); }
    if (!r) return NULL;
    r += strlen(k); while (*r == ' ' || *r == ':') r++; return r;
}
static long knob_int(const char *b, long n, const char *k, long d) { const char *r = knob(b, n, k); return r && ((*r >= '0' && *r <= '9')) ? atol(r) : d; }
static int knob_true(const char *b, long n, const char *k) { const char *r = knob(b, n, k); return r && *r == 't'; }

static int put_ts(char *p, int64_t t) { t += 1000000000000000000LL; for (int i = 18; i >= 0; i--) { p[i] = '0' + t % 10; t /= 10; } return 19; }
static char tpl_chat[4096], tpl_cmpl[4096]; static int tl_chat, tl_cmpl, ts_chat, ts_cmpl;
static void mk_tpl(char *out, int *len, int *ts, const char *obj, const char *mid) {
    char body[4000]; int n = snprintf(body, sizeof body, "data: {\"id\":\"%s-0123456789abcdef0123456789abcdef\",\"object\":\"%s\",\"created\":1767225600,\"model\":\"%s\",\"choices\":[{\"index\":0,%s\"logprobs\":null,\"finish_reason\":null}],\"ts\":", obj[0] == 'c' ? "chatcmpl" : "cmpl", obj, model, mid);
    int tsoff = n; n += 19; int pad = chunk_bytes - n - 3 - 9;
    if (pad >= 0) { n += sprintf(body + n, ",\"pad\":\"%.*s\"}\n\n", pad, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"); } else n += sprintf(body + n, "}\n\n");
    int h = sprintf(out, "%x\r\n", n); memcpy(out + h, body, n); memcpy(out + h + n, "\r\n", 2); *len = h + n + 2; *ts = h + tsoff;
}

static int finish_stream(conn *c) {
    static const char done[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"; /* "data: [DONE]\n\n" is 14 = 0xe bytes */
    c->streaming = 0; running--; hdel(c);
    return cwrite(c, done, sizeof done - 1);
}
/* emit one chunk; returns -1 dead */
static int emit(conn *c, int64_t now) {
    char b[4096]; int n, t;
    if (c->chat) { n = tl_chat; t = ts_chat; memcpy(b, tpl_chat, n); } else { n = tl_cmpl; t = ts_cmpl; memcpy(b, tpl_cmpl, n); }
    put_ts(b + t, now); n_chunks++;
    c->left--;
    if (cwrite(c, b, n) < 0) return -1;
    if (c->left <= 0) return finish_stream(c);
    c->due += c->interval;
    return 0;
}

static int respond_json(conn *c, int code, const char *ctype, const char *body, long n) {
    char h[512 + 8192]; int k = snprintf(h, 512, "HTTP/1.1 %d %s\r\ndate: Sun, 22 Nov 2026 06:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %ld\r\ncontent-type: %s\r\n\r\n", code, code == 200 ? "OK" : "Not Found", n, ctype);
    if (n <= 8192) { memcpy(h + k, body, n); return cwrite(c, h, k + n); }
    if (cwrite(c, h, k) < 0) return -1;
    return cwrite(c, body, n);
}

static const char *handover(int port) {
    static char kvp[2048]; static int made_for;
    if (made_for == port) return kvp;
    int k = sprintf(kvp, "{\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_engine_id\":\"5f0c2e1a-6a0e-4b5e-9a51-0c2f4d7%05d\",\"remote_request_id\":\"chatcmpl-0123456789abcdef\",\"remote_host\":\"127.0.0.1\",\"remote_port\":5600,\"tp_size\":1,\"remote_block_ids\":[[", port);
    for (int i = 0; i < 64; i++) k += sprintf(kvp + k, "%s%d", i ? "," : "", 4096 + i);
    sprintf(kvp + k, "]]}"); made_for = port; return kvp;
}
static int trace;
static int do_request(conn *c, const char *head, const char *body, long blen) {
    if (trace) { const char *e = strstr(head, "\r\n"); fprintf(stderr, "%.3f fd %d %s %.*s body %ld: %.*s ... %.*s\n", now_ns() / 1e9, c->fd, c->prefill ? "prefill" : "decode", (int)(e - head), head, blen, (int)(blen < 700 ? blen : 700), body, blen > 700 ? (int)(blen - 700 < 300 ? blen - 700 : 300) : 0, blen > 700 ? body + blen - (blen - 700 < 300 ? blen - 700 : 300) : ""); }
    char b[8192]; int n;
    n_req++;
    const char *path = strchr(head, ' ');
    if (!path || !strncmp(head, "PRI ", 4) || path[1] != '/') return -1;   /* an HTTP/2 (gRPC) probe */
    path++;
    if (!strncmp(head, "POST /v1/c", 10) || !strncmp(head, "POST /generate", 14)) {
        int chat = !strncmp(path, "/v1/chat", 8);
        const char *qe = strchr(path, ' ');
        if (qe && qe - path > 7 && !strncmp(qe - 7, "/render", 7)) { n = snprintf(b, sizeof b, "{\"detail\":\"Not Found\"}"); return respond_json(c, 404, "application/json", b, n); }
        int stream = knob_true(body, blen, "\"stream\"");
        long k = knob_int(body, blen, "\"max_tokens\"", 0), k2 = knob_int(body, blen, "\"max_completion_tokens\"", 0);
        if (!k || (k2 && k2 < k)) k = k2;   /* some routers rename the one into the other */
        if (!k) k = 16;
        long us = knob_int(body, blen, "\"seed\"", 0);
        int pre = c->prefill || knob_true(body, blen, "\"do_remote_decode\"");
        int dec = knob_true(body, blen, "\"do_remote_prefill\"");
        if (pre) k = 1;
        if (c->prefill) n_prefill++; else n_decode++;
        if (dec && knob(body, blen, "\"remote_block_ids\"")) n_handed++;
        long tokens = knob_int(body, blen, "\"user\":\"tokens=", 256), cached = knob_int(body, blen, " cached=", 0);
        if (stream) {
            static const char h[] = "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 06:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
            if (cwrite(c, h, sizeof h - 1) < 0) return -1;
            c->streaming = 1; running++; c->chat = chat; c->left = k; c->interval = us * 1000; c->due = now_ns();
            if (emit(c, c->due) < 0) return -1;
            if (c->streaming) hpush(c);
            return 0;
        }
        n = snprintf(b, sizeof b, "{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"%s\",\"created\":1767225600,\"model\":\"%s\",\"choices\":[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":%ld,\"total_tokens\":%ld,\"completion_tokens\":%ld,\"prompt_tokens_details\":{\"cached_tokens\":%ld}},\"prompt_logprobs\":null,\"kv_transfer_params\":%s}",
            chat ? "chat.completion" : "text_completion", model,
            chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog and keeps running through the quiet forest until the evening light fades away.\",\"refusal\":null,\"tool_calls\":[]}" : "\"text\":\"The quick brown fox jumps over the lazy dog and keeps running through the quiet forest until the evening light fades away.\"",
            tokens, tokens + k, k, cached, pre ? handover(c->port) : "null");
        return respond_json(c, 200, "application/json", b, n);
    }
    if (!strncmp(path, "/v1/models", 10)) {
        n = snprintf(b, sizeof b, "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1767225600,\"owned_by\":\"vllm\",\"root\":\"%s\",\"parent\":null,\"max_model_len\":131072,\"permission\":[]}]}", model, model);
    } else if (!strncmp(path, "/metrics", 8)) {
        n = snprintf(b, sizeof b, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"%s\"} %ld.0\n# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\",model_name=\"%s\"} 0.0\n# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"%s\"} 0.1\nfake_requests %lu\nfake_prefill %lu\nfake_decode %lu\nfake_handed %lu\nfake_chunks %lu\n", model, running, model, model, n_req, n_prefill, n_decode, n_handed, n_chunks);
        return respond_json(c, 200, "text/plain; version=0.0.4", b, n);
    } else if (!strncmp(path, "/version", 8)) { n = snprintf(b, sizeof b, "{\"version\":\"0.14.0\"}"); }
    else if (!strncmp(path, "/health", 7) || !strncmp(path, "/ping", 5) || !strncmp(path, "/readiness", 10) || !strncmp(path, "/liveness", 9)) { n = 0; }
    else if (strstr(path, "server_info")) { n = snprintf(b, sizeof b, "{\"model_path\":\"%s\",\"tp_size\":1,\"dp_size\":1,\"served_model_name\":\"%s\",\"version\":\"0.5\",\"disaggregation_mode\":\"%s\",\"internal_states\":[{}]}", model, model, c->prefill ? "prefill" : "decode"); }
    else if (strstr(path, "model_info")) { n = snprintf(b, sizeof b, "{\"model_path\":\"%s\",\"tokenizer_path\":\"%s\",\"is_generation\":true}", model, model); }
    else { n = snprintf(b, sizeof b, "{\"detail\":\"Not Found\"}"); return respond_json(c, 404, "application/json", b, n); }
    return respond_json(c, 200, "application/json", b, n);
}

/* header value lookup inside head (NUL-terminated at end of head) */
static const char *hdr(const char *head, const char *name) {
    size_t l = strlen(name); const char *p = head;
    while ((p = strstr(p, "\r\n"))) { p += 2; if (!strncasecmp(p, name, l) && p[l] == ':') { p += l + 1; while (*p == ' ') p++; return p; } }
    return NULL;
}
/* try to de-chunk in place; returns bytes consumed or 0 if incomplete */
static long dechunk(char *b, long n, long *outlen) {
    long pass; long total = 0;
    for (pass = 0; pass < 2; pass++) {
        long i = 0, o = 0;
        for (;;) {
            char *e = memmem(b + i, n - i, "\r\n", 2); if (!e) return 0;
            long sz = strtol(b + i, NULL, 16); long d = e + 2 - b;
            if (d + sz + 2 > n) return 0;
            if (sz == 0) { *outlen = o; total = d + 2; break; }
            if (pass) memmove(b + o, b + d, sz);
            o += sz; i = d + sz + 2;
        }
    }
    return total;
}

static int process(conn *c) {
    while (c->inlen && !c->streaming) {
        if (c->body_off < 0) {
            char *e = memmem(c->in, c->inlen, "\r\n\r\n", 4); if (!e) return 0;
            c->body_off = e + 4 - c->in; e[2] = 0; /* head now ends with \r\n\0 */
            const char *v = hdr(c->in, "content-length"); c->body_len = v ? atol(v) : 0;
            v = hdr(c->in, "transfer-encoding"); c->chunked_req = v && !strncasecmp(v, "chunked", 7);
            v = hdr(c->in, "expect"); if (v && cwrite(c, "HTTP/1.1 100 Continue\r\n\r\n", 25) < 0) return -1;
            v = hdr(c->in, "connection"); c->want_close = v && !strncasecmp(v, "close", 5);
        }
        long used, blen;
        if (c->chunked_req) { used = dechunk(c->in + c->body_off, c->inlen - c->body_off, &blen); if (!used) return 0; }
        else { if ((long)c->inlen - c->body_off < c->body_len) return 0; used = blen = c->body_len; }
        char save = 0; char *end = c->in + c->body_off + blen; int r;
        save = *end; *end = 0;
        r = do_request(c, c->in, c->in + c->body_off, blen);
        *end = save;
        if (r < 0) return -1;
        size_t tot = c->body_off + used;
        memmove(c->in, c->in + tot, c->inlen - tot); c->inlen -= tot;
        c->body_off = -1;
        if (c->want_close && !c->streaming) { if (c->outlen == c->outoff) return -1; }
    }
    return 0;
}

static int on_read(conn *c) {
    for (;;) {
        if (c->incap - c->inlen < 65536) { c->incap = c->incap ? c->incap * 2 : 131072; c->in = realloc(c->in, c->incap + 1); }
        size_t room = c->incap - c->inlen;
        ssize_t r = recv(c->fd, c->in + c->inlen, room, 0);
        if (r == 0) return -1;
        if (r < 0) { if (errno == EAGAIN) return 0; return -1; }
        c->inlen += r;
        if (process(c) < 0) return -1;
        if ((size_t)r < room) return 0;
    }
}

int main(int argc, char **argv) {
    int o; ep = epoll_create1(0); signal(SIGPIPE, SIG_IGN);
    int ports[64], pre[64], np = 0;
    while ((o = getopt(argc, argv, "l:P:m:z:v")) != -1) {
        if (o == 'l' || o == 'P') { ports[np] = atoi(optarg); pre[np++] = o == 'P'; }
        else if (o == 'v') trace = 1;
        else if (o == 'm') model = optarg; else if (o == 'z') chunk_bytes = atoi(optarg);
        else return 2;
    }
    mk_tpl(tpl_chat, &tl_chat, &ts_chat, "chat.completion.chunk", "\"delta\":{\"content\":\" token\"},");
    mk_tpl(tpl_cmpl, &tl_cmpl, &ts_cmpl, "text_completion", "\"text\":\" token\",");
    for (int i = 0; i < np; i++) {
        int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1; setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(ports[i]), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        if (bind(s, (void *)&a, sizeof a) || listen(s, 4096)) { perror("bind"); return 1; }
        conn *c = calloc(1, sizeof *c); c->fd = s; c->listener = 1; c->prefill = pre[i]; c->port = ports[i]; c->heap_pos = -1;
        struct epoll_event e = { .events = EPOLLIN, .data.ptr = c }; epoll_ctl(ep, EPOLL_CTL_ADD, s, &e);
    }
    struct epoll_event ev[256];
    for (;;) {
        struct timespec ts, *tp = NULL;
        if (hn) { int64_t d = heap[0]->due - now_ns(); if (d < 0) d = 0; ts.tv_sec = d / 1000000000; ts.tv_nsec = d % 1000000000; tp = &ts; }
        int n = epoll_pwait2(ep, ev, 256, tp, NULL);
        for (int i = 0; i < n; i++) {
            conn *c = ev[i].data.ptr;
            if (c->listener) {
                for (;;) {
                    int fd = accept4(c->fd, NULL, NULL, SOCK_NONBLOCK); if (fd < 0) break;
                    int one = 1; setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conn *d = calloc(1, sizeof *d); d->fd = fd; d->prefill = c->prefill; d->port = c->port; d->body_off = -1; d->heap_pos = -1;
                    struct epoll_event e = { .events = EPOLLIN | EPOLLRDHUP, .data.ptr = d }; epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
                }
                continue;
            }
            int dead = 0;
            if (ev[i].events & EPOLLIN) dead = on_read(c) < 0;
            else if (ev[i].events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) dead = 1;
            if (!dead && (ev[i].events & EPOLLOUT) && c->blocked) {
                ssize_t w = send(c->fd, c->out + c->outoff, c->outlen - c->outoff, MSG_NOSIGNAL);
                if (w < 0 && errno != EAGAIN) dead = 1;
                else if (w > 0) { c->outoff += w; if (c->outoff == c->outlen) { c->outoff = c->outlen = 0; c->blocked = 0; set_events(c, 0); if (c->streaming) { c->due = now_ns(); hdel(c); hpush(c); } } }
            }
            if (dead) { /* later events for the same conn cannot follow: one entry per fd */ cclose(c); }
        }
        /* due streams: a bounded batch so that reads are not starved */
        int64_t now = now_ns();
        for (int b = 0; b < 512 && hn && heap[0]->due <= now; b++) {
            conn *c = heap[0];
            if (c->blocked) { hdel(c); c->heap_pos = -1; continue; }
            if (emit(c, now_ns()) < 0) { cclose(c); continue; }
            if (c->streaming && c->heap_pos >= 0) hdown(c->heap_pos);
            else if (!c->streaming && c->inlen && process(c) < 0) cclose(c);
        }
    }
}
