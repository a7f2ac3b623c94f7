/* Engines that cost next to nothing, so that a router in front of them is what is measured: one epoll thread.
 *
 *   fakevllm [-m MODEL] [-z CHUNK_BYTES] [-T FILE] -l PORT ... -P PORT ...
 *
 *   -l  a decode engine, or one that serves requests whole     -P  a prefill engine
 *   -T  answers of /tokenize: after a line "QUESTION_BYTES ANSWER_BYTES" a question's body and its answer, and
 *       so on. An empty answer is status 400; any other question gets a 404, as all do without this file.
 *
 * POST /v1/completions and /v1/chat/completions; GET /health, /version, /v1/models, /metrics and what routers
 * ask at their start. What is to be answered stands in the request, so that every router passes it on:
 * "max_tokens" chunks, "seed" microseconds between two of them, and "user":"tokens=N cached=M" for the usage.
 * It is looked for in the first 1.5 KB and the last 4 KB of a body. A prefill engine, and whoever is asked
 * with "do_remote_decode":true, generates one token and answers with kv_transfer_params as vLLM's NixlConnector
 * does.
 * Each streamed event has "ts": 10^18 + CLOCK_MONOTONIC in ns as it was sent, so that a client on the same
 * machine can tell how long it took.
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
#define TS_DIGITS 19
#define HEAD_BYTES 1500
#define TAIL_BYTES 4096
#define MOST_DUE 512 /* chunks sent in one turn, so that reads are not starved */
#define COMMON_HEAD "date: Sun, 22 Nov 2026 06:00:00 GMT\r\nserver: uvicorn\r\n"

typedef struct {
    int fd, listener, prefill, port;
    char *in;
    size_t in_len, in_cap;
    char *out;
    size_t out_at, out_len, out_cap;
    long body_at, body_len; /* body_at: -1 until its head is read */
    int chunked, closing;
    int streaming, blocked, chat;
    long left;
    int64_t due, interval;
    int heap_at; /* -1: not in the heap */
} conn;

static int ep, chunk_bytes = 250;
static const char *model = "m";
static unsigned long n_prefill, n_decode, n_handed, n_chunks;
static long running;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* A heap of the streams, by when their next chunk is due. */

static conn **heap;
static int heap_len, heap_cap;

static void heap_swap(int a, int b) {
    conn *t = heap[a];
    heap[a] = heap[b];
    heap[b] = t;
    heap[a]->heap_at = a;
    heap[b]->heap_at = b;
}
static void heap_up(int i) {
    for (; i && heap[(i - 1) / 2]->due > heap[i]->due; i = (i - 1) / 2) heap_swap(i, (i - 1) / 2);
}
static void heap_down(int i) {
    for (;;) {
        int left = 2 * i + 1, least = i;
        if (left < heap_len && heap[left]->due < heap[least]->due) least = left;
        if (left + 1 < heap_len && heap[left + 1]->due < heap[least]->due) least = left + 1;
        if (least == i) return;
        heap_swap(i, least);
        i = least;
    }
}
static void heap_push(conn *c) {
    if (heap_len == heap_cap) heap = realloc(heap, (heap_cap = heap_cap ? heap_cap * 2 : 256) * sizeof *heap);
    heap[heap_len] = c;
    c->heap_at = heap_len;
    heap_up(heap_len++);
}
static void heap_remove(conn *c) {
    int i = c->heap_at;
    if (i < 0) return;
    if (i != --heap_len) {
        heap[i] = heap[heap_len];
        heap[i]->heap_at = i;
        heap_up(i);
        heap_down(i);
    }
    c->heap_at = -1;
}

/* Connections. What answers returns -1 if the connection is dead. */

static void listen_for(conn *c, int writable) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (writable ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}
static void end(conn *c) {
    if (c->streaming) running--;
    heap_remove(c);
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}
static int put(conn *c, const char *p, size_t n) {
    if (c->out_len == c->out_at) {
        ssize_t w = send(c->fd, p, n, MSG_NOSIGNAL);
        if (w < 0 && errno != EAGAIN) return -1;
        if (w < 0) w = 0;
        if ((size_t)w == n) return 0;
        p += w;
        n -= w;
        c->out_at = c->out_len = 0;
    }
    if (c->out_len + n > c->out_cap) c->out = realloc(c->out, c->out_cap = (c->out_len + n) * 2);
    memcpy(c->out + c->out_len, p, n);
    c->out_len += n;
    c->blocked = 1;
    listen_for(c, 1);
    return 0;
}
static int flush(conn *c) {
    ssize_t w = send(c->fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);
    if (w < 0) return errno == EAGAIN ? 0 : -1;
    c->out_at += w;
    if (c->out_at < c->out_len) return 0;
    c->out_at = c->out_len = c->blocked = 0;
    listen_for(c, 0);
    if (c->streaming) {
        c->due = now_ns();
        heap_remove(c);
        heap_push(c);
    }
    return 0;
}

/* What a request says. */

static const char *member(const char *b, long n, const char *name) {
    const char *at = NULL;
    size_t len = strlen(name);
    if (n <= HEAD_BYTES + TAIL_BYTES) at = memmem(b, n, name, len);
    else if (!(at = memmem(b + n - TAIL_BYTES, TAIL_BYTES, name, len))) at = memmem(b, HEAD_BYTES, name, len);
    if (!at) return NULL;
    for (at += len; *at == ' ' || *at == ':'; at++) {}
    return at;
}
static long number(const char *b, long n, const char *name, long otherwise) {
    const char *at = member(b, n, name);
    return at && *at >= '0' && *at <= '9' ? atol(at) : otherwise;
}
static int is_true(const char *b, long n, const char *name) {
    const char *at = member(b, n, name);
    return at && *at == 't';
}

/* Streams: a chunk is made once and sent many times, each with its own "ts". */

typedef struct {
    char text[4096];
    int len, ts_at;
} chunk;
static chunk chat_chunk, text_chunk;

static void make_chunk(chunk *made, const char *id, const char *object, const char *choice) {
    static const char pad[] = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
    char event[4000];
    int n = snprintf(event, sizeof event,
        "data: {\"id\":\"%s-0123456789abcdef0123456789abcdef\",\"object\":\"%s\",\"created\":1767225600,"
        "\"model\":\"%s\",\"choices\":[{\"index\":0,%s\"logprobs\":null,\"finish_reason\":null}],\"ts\":",
        id, object, model, choice);
    int ts_at = n;
    n += TS_DIGITS;
    int lacks = chunk_bytes - n - (int)strlen(",\"pad\":\"\"}\n\n");
    if (lacks >= 0) n += sprintf(event + n, ",\"pad\":\"%.*s\"}\n\n", lacks, pad);
    else n += sprintf(event + n, "}\n\n");
    int size = sprintf(made->text, "%x\r\n", n);
    memcpy(made->text + size, event, n);
    memcpy(made->text + size + n, "\r\n", 2);
    made->len = size + n + 2;
    made->ts_at = size + ts_at;
}
static int send_chunk(conn *c, int64_t now) {
    static const char done[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    chunk *made = c->chat ? &chat_chunk : &text_chunk;
    int64_t ts = now + TS_BASE;
    for (int i = TS_DIGITS - 1; i >= 0; i--, ts /= 10) made->text[made->ts_at + i] = '0' + ts % 10;
    n_chunks++;
    if (put(c, made->text, made->len) < 0) return -1;
    c->due += c->interval;
    if (--c->left > 0) return 0;
    c->streaming = 0;
    running--;
    heap_remove(c);
    return put(c, done, sizeof done - 1);
}
static int stream(conn *c, int chat, long chunks, long interval_us) {
    static const char head[] = "HTTP/1.1 200 OK\r\n" COMMON_HEAD
        "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    if (put(c, head, sizeof head - 1) < 0) return -1;
    c->streaming = 1;
    running++;
    c->chat = chat;
    c->left = chunks;
    c->interval = interval_us * 1000;
    c->due = now_ns();
    if (send_chunk(c, c->due) < 0) return -1;
    if (c->streaming) heap_push(c);
    return 0;
}

/* Whole answers. */

static int answer(conn *c, int status, const char *type, const char *body, long n) {
    char b[512 + 8192];
    const char *reason = status == 200 ? "OK" : status == 400 ? "Bad Request" : "Not Found";
    int k = snprintf(b, 512, "HTTP/1.1 %d %s\r\n" COMMON_HEAD "content-length: %ld\r\ncontent-type: %s\r\n\r\n",
        status, reason, n, type);
    if (n > 8192) return put(c, b, k) < 0 ? -1 : put(c, body, n);
    memcpy(b + k, body, n);
    return put(c, b, k + n);
}
static int answer_json(conn *c, int status, const char *body) {
    return answer(c, status, "application/json", body, strlen(body));
}
static int not_found(conn *c) { return answer_json(c, 404, "{\"detail\":\"Not Found\"}"); }

static const char *handover(int port) { /* what NixlConnector tells of the blocks it keeps */
    static char params[2048];
    static int made_for;
    if (made_for == port) return params;
    int k = sprintf(params,
        "{\"do_remote_prefill\":true,\"do_remote_decode\":false,"
        "\"remote_engine_id\":\"5f0c2e1a-6a0e-4b5e-9a51-0c2f4d7%05d\","
        "\"remote_request_id\":\"chatcmpl-0123456789abcdef\",\"remote_host\":\"127.0.0.1\",\"remote_port\":5600,"
        "\"tp_size\":1,\"remote_block_ids\":[[", port);
    for (int i = 0; i < 64; i++) k += sprintf(params + k, "%s%d", i ? "," : "", 4096 + i);
    sprintf(params + k, "]]}");
    made_for = port;
    return params;
}
static int generate(conn *c, int chat, const char *body, long n) {
    static const char text[] = "The quick brown fox jumps over the lazy dog and keeps running through the quiet "
        "forest until the evening light fades away.";
    char b[8192], choice[512];
    long tokens = number(body, n, "\"max_tokens\"", 0);
    long renamed = number(body, n, "\"max_completion_tokens\"", 0); /* some routers make the one of the other */
    if (!tokens || (renamed && renamed < tokens)) tokens = renamed;
    if (!tokens) tokens = 16;
    int keeps = c->prefill || is_true(body, n, "\"do_remote_decode\"");
    if (keeps) tokens = 1;
    if (c->prefill) n_prefill++;
    else n_decode++;
    if (is_true(body, n, "\"do_remote_prefill\"") && member(body, n, "\"remote_block_ids\"")) n_handed++;
    if (is_true(body, n, "\"stream\"")) return stream(c, chat, tokens, number(body, n, "\"seed\"", 0));
    long prompt = number(body, n, "\"tokens=", 256), cached = number(body, n, " cached=", 0);
    snprintf(choice, sizeof choice, chat
        ? "\"message\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null,\"tool_calls\":[]}"
        : "\"text\":\"%s\"", text);
    snprintf(b, sizeof b,
        "{\"id\":\"%s-0123456789abcdef0123456789abcdef\",\"object\":\"%s\",\"created\":1767225600,"
        "\"model\":\"%s\",\"choices\":[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":\"length\","
        "\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":%ld,\"total_tokens\":%ld,\"completion_tokens\":%ld,"
        "\"prompt_tokens_details\":{\"cached_tokens\":%ld}},\"prompt_logprobs\":null,\"kv_transfer_params\":%s}",
        chat ? "chatcmpl" : "cmpl", chat ? "chat.completion" : "text_completion", model, choice, prompt,
        prompt + tokens, tokens, cached, keeps ? handover(c->port) : "null");
    return answer_json(c, 200, b);
}

typedef struct {
    char *question, *answer;
    long question_len, answer_len;
} known;
static known *answers;
static int n_answers;

static int read_answers(const char *file) {
    FILE *f = fopen(file, "rb");
    known k;
    if (!f) return -1;
    while (fscanf(f, "%ld %ld", &k.question_len, &k.answer_len) == 2 && fgetc(f) == '\n') {
        k.question = malloc(k.question_len + 1);
        k.answer = malloc(k.answer_len + 1);
        if (fread(k.question, 1, k.question_len, f) != (size_t)k.question_len) return -1;
        if (fread(k.answer, 1, k.answer_len, f) != (size_t)k.answer_len) return -1;
        answers = realloc(answers, (n_answers + 1) * sizeof *answers);
        answers[n_answers++] = k;
    }
    return fclose(f);
}
static int tokenize(conn *c, const char *body, long n) {
    for (known *k = answers; k < answers + n_answers; k++) {
        if (k->question_len != n || memcmp(k->question, body, n)) continue;
        if (!k->answer_len) return answer_json(c, 400, "{\"error\":{\"message\":\"no such prompt\",\"code\":400}}");
        return answer(c, 200, "application/json", k->answer, k->answer_len);
    }
    return not_found(c);
}

static int starts(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }

static int respond(conn *c, const char *head, const char *body, long n) {
    char b[2048];
    const char *path = strchr(head, ' ');
    if (!path || path[1] != '/') return -1; /* such as an HTTP/2 preface */
    path++;
    if (starts(head, "POST /v1/chat/completions ")) return generate(c, 1, body, n);
    if (starts(head, "POST /v1/completions ")) return generate(c, 0, body, n);
    if (starts(head, "POST /tokenize ")) return tokenize(c, body, n);
    if (!starts(head, "GET ")) return not_found(c);
    if (starts(path, "/health")) return answer_json(c, 200, "");
    if (starts(path, "/version")) return answer_json(c, 200, "{\"version\":\"0.14.0\"}");
    if (starts(path, "/v1/models")) {
        snprintf(b, sizeof b,
            "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1767225600,"
            "\"owned_by\":\"vllm\",\"root\":\"%s\",\"parent\":null,\"max_model_len\":262144,\"permission\":[]}]}",
            model, model);
        return answer_json(c, 200, b);
    }
    if (starts(path, "/metrics")) {
        int k = snprintf(b, sizeof b,
            "# TYPE vllm:num_requests_running gauge\n"
            "vllm:num_requests_running{engine=\"0\",model_name=\"%s\"} %ld.0\n"
            "# TYPE vllm:num_requests_waiting gauge\n"
            "vllm:num_requests_waiting{engine=\"0\",model_name=\"%s\"} 0.0\n"
            "# TYPE vllm:kv_cache_usage_perc gauge\n"
            "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"%s\"} 0.1\n"
            "fake_prefill %lu\nfake_decode %lu\nfake_handed %lu\nfake_chunks %lu\n",
            model, running, model, model, n_prefill, n_decode, n_handed, n_chunks);
        return answer(c, 200, "text/plain; version=0.0.4", b, k);
    }
    if (strstr(path, "server_info")) { /* SGLang's; its router will not start without */
        snprintf(b, sizeof b,
            "{\"model_path\":\"%s\",\"tp_size\":1,\"dp_size\":1,\"served_model_name\":\"%s\",\"version\":\"0.5\","
            "\"disaggregation_mode\":\"%s\",\"internal_states\":[{}]}",
            model, model, c->prefill ? "prefill" : "decode");
        return answer_json(c, 200, b);
    }
    if (strstr(path, "model_info")) {
        snprintf(b, sizeof b, "{\"model_path\":\"%s\",\"tokenizer_path\":\"%s\",\"is_generation\":true}",
            model, model);
        return answer_json(c, 200, b);
    }
    return not_found(c);
}

/* Requests, as they come. */

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
/* Make a chunked body whole, in place: the bytes it took, or 0 if its end is not there yet. */
static long dechunk(char *b, long n, long *whole) {
    for (int move = 0; move < 2; move++) {
        for (long at = 0, to = 0;;) {
            char *line_end = memmem(b + at, n - at, "\r\n", 2);
            if (!line_end) return 0;
            long size = strtol(b + at, NULL, 16), data = line_end + 2 - b;
            if (data + size + 2 > n) return 0;
            if (!size && move) {
                *whole = to;
                return data + 2;
            }
            if (!size) break;
            if (move) memmove(b + to, b + data, size);
            to += size;
            at = data + size + 2;
        }
    }
    return 0;
}
static int read_head(conn *c) { /* 1 if it is there */
    char *e = memmem(c->in, c->in_len, "\r\n\r\n", 4);
    if (!e) return 0;
    c->body_at = e + 4 - c->in;
    e[2] = 0;
    const char *value = header(c->in, "content-length");
    c->body_len = value ? atol(value) : 0;
    value = header(c->in, "transfer-encoding");
    c->chunked = value && !strncasecmp(value, "chunked", 7);
    value = header(c->in, "connection");
    c->closing = value && !strncasecmp(value, "close", 5);
    if (header(c->in, "expect") && put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25) < 0) return -1;
    return 1;
}
static int serve(conn *c) {
    while (c->in_len && !c->streaming) {
        if (c->body_at < 0) {
            int there = read_head(c);
            if (there <= 0) return there;
        }
        long used = c->body_len, n = c->body_len, here = c->in_len - c->body_at;
        if (c->chunked && !(used = dechunk(c->in + c->body_at, here, &n))) return 0;
        if (!c->chunked && here < c->body_len) return 0;
        char *body_end = c->in + c->body_at + n, kept = *body_end;
        *body_end = 0;
        if (respond(c, c->in, c->in + c->body_at, n) < 0) return -1;
        *body_end = kept;
        size_t all = c->body_at + used;
        memmove(c->in, c->in + all, c->in_len - all);
        c->in_len -= all;
        c->body_at = -1;
        if (c->closing && !c->streaming && c->out_len == c->out_at) return -1;
    }
    return 0;
}
static int take(conn *c) {
    for (;;) {
        if (c->in_cap - c->in_len < 65536) {
            c->in_cap = c->in_cap ? c->in_cap * 2 : 131072;
            c->in = realloc(c->in, c->in_cap + 1);
        }
        size_t room = c->in_cap - c->in_len;
        ssize_t got = recv(c->fd, c->in + c->in_len, room, 0);
        if (got < 0) return errno == EAGAIN ? 0 : -1;
        if (!got) return -1;
        c->in_len += got;
        if (serve(c) < 0) return -1;
        if ((size_t)got < room) return 0;
    }
}
static void add(int fd, conn from, unsigned events) {
    conn *c = malloc(sizeof *c);
    *c = from;
    c->fd = fd;
    c->body_at = -1;
    c->heap_at = -1;
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}
static void let_in(conn *listener) {
    int fd, on = 1;
    while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        add(fd, (conn){.prefill = listener->prefill, .port = listener->port}, EPOLLIN | EPOLLRDHUP);
    }
}
static int open_port(int port, int prefill) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) return -1;
    add(fd, (conn){.listener = 1, .prefill = prefill, .port = port}, EPOLLIN);
    return 0;
}
static void send_due(void) {
    int64_t now = now_ns();
    for (int n = 0; n < MOST_DUE && heap_len && heap[0]->due <= now; n++) {
        conn *c = heap[0];
        if (c->blocked) heap_remove(c);
        else if (send_chunk(c, now_ns()) < 0) end(c);
        else if (c->streaming) heap_down(c->heap_at);
        else if (c->in_len && serve(c) < 0) end(c);
    }
}

int main(int argc, char **argv) {
    struct epoll_event events[256];
    int o;
    ep = epoll_create1(0);
    signal(SIGPIPE, SIG_IGN);
    while ((o = getopt(argc, argv, "l:P:m:z:T:")) != -1) {
        int failed = 0;
        if (o == 'l' || o == 'P') failed = open_port(atoi(optarg), o == 'P');
        else if (o == 'm') model = optarg;
        else if (o == 'z') chunk_bytes = atoi(optarg);
        else if (o == 'T') failed = read_answers(optarg);
        else return 2;
        if (failed) {
            perror(optarg);
            return 1;
        }
    }
    make_chunk(&chat_chunk, "chatcmpl", "chat.completion.chunk", "\"delta\":{\"content\":\" token\"},");
    make_chunk(&text_chunk, "cmpl", "text_completion", "\"text\":\" token\",");
    for (;;) {
        struct timespec wait, *at_most = NULL;
        if (heap_len) {
            int64_t left = heap[0]->due - now_ns();
            if (left < 0) left = 0;
            wait = (struct timespec){left / 1000000000, left % 1000000000};
            at_most = &wait;
        }
        int n = epoll_pwait2(ep, events, 256, at_most, NULL);
        for (int i = 0; i < n; i++) {
            conn *c = events[i].data.ptr;
            int dead = 0;
            if (c->listener) {
                let_in(c);
                continue;
            }
            if (events[i].events & EPOLLIN) dead = take(c) < 0;
            else if (events[i].events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) dead = 1;
            if (!dead && events[i].events & EPOLLOUT && c->blocked) dead = flush(c) < 0;
            if (dead) end(c);
        }
        send_due();
    }
}
