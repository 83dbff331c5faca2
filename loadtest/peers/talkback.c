/* The talkback life cycle in C, as the floor that any server in any language can be measured against.
 *
 *   talkback HOST PORT
 *
 * One process, blocking, one connection at a time: accept, greet, read a line, say it back, close. It checks every call, and
 * that is all it does: no signals, no counters, no timeouts.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define GREETING "hello from prefork\n"
#define PREFIX "you said: "
#define LIMIT 65536

static void fail(const char *step) {
    perror(step);
    exit(1);
}

static int send_all(int fd, const char *bytes, size_t count) {
    while (count > 0) {
        ssize_t sent = send(fd, bytes, count, MSG_NOSIGNAL);
        if (sent <= 0)
            return -1;
        bytes += sent;
        count -= (size_t)sent;
    }
    return 0;
}

/* Reads up to the line's end, or the stream's, into reply after its prefix. Returns the length of the line, or -1. */
static ssize_t read_line(int fd, char *line) {
    size_t length = 0;
    while (length < LIMIT) {
        ssize_t got = recv(fd, line + length, LIMIT - length, 0);
        if (got < 0)
            return -1;
        char *end = memchr(line + length, '\n', (size_t)got);
        length += (size_t)got;
        if (end != NULL)
            return end > line && end[-1] == '\r' ? end - 1 - line : end - line;
        if (got == 0)
            return (ssize_t)length;
    }
    return -1;
}

static void serve(int fd) {
    static char reply[sizeof PREFIX + LIMIT] = PREFIX;
    char *line = reply + sizeof PREFIX - 1;
    if (send_all(fd, GREETING, sizeof GREETING - 1) < 0)
        return;
    ssize_t length = read_line(fd, line);
    if (length < 0)
        return;
    line[length] = '\n';
    send_all(fd, reply, sizeof PREFIX - 1 + (size_t)length + 1);
}

int main(int argc, char **argv) {
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (argc != 3 || inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) {
        fprintf(stderr, "usage: talkback IPV4 PORT\n");
        return 2;
    }
    address.sin_port = htons((unsigned short)atoi(argv[2]));
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0)
        fail("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        fail("bind");
    if (listen(listener, 2048) < 0)
        fail("listen");
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue; /* the client went away in the queue */
        serve(fd);
        close(fd);
    }
}
