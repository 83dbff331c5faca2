/* Answers every HTTP request with the same few bytes: what is left to measure is the load generator, and the kernel.
 *
 *   sink HOST PORT [BUSY_US]
 *
 * With BUSY_US every request takes so many microseconds of CPU, so that the server is the limit, and the same one for every client.
 * One process, one epoll, keep-alive connections until a request says "Connection: close". A request ends at the first empty
 * line; what a body would hold is not looked at, so it serves requests without one (GET). No timeouts, no limits.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REPLY "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\nHello, world!\n"
#define LAST "\r\nConnection: close\r\n"
#define EVENTS 256
#define DESCRIPTORS 65536

static unsigned char matched[DESCRIPTORS]; /* of each connection: how much of "\r\n\r\n" its bytes end with */

static long busy_ns; /* CPU time that a request takes */

static void fail(const char *step) {
    perror(step);
    exit(1);
}

static int listen_on(const char *host, const char *port) {
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "usage: sink IPV4 PORT [BUSY_US]\n");
        exit(2);
    }
    address.sin_port = htons((unsigned short)atoi(port));
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (listener < 0)
        fail("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        fail("bind");
    if (listen(listener, 2048) < 0)
        fail("listen");
    return listener;
}

static void accept_all(int epoll, int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct epoll_event interest = {.events = EPOLLIN, .data.fd = fd};
        if (fd >= DESCRIPTORS || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &interest) < 0) {
            close(fd);
            continue;
        }
        matched[fd] = 0;
    }
}

/* How many requests end in these bytes. */
static int count_requests(int fd, const char *bytes, ssize_t count) {
    static const char end[] = "\r\n\r\n";
    int found = 0;
    unsigned char match = matched[fd];
    for (ssize_t i = 0; i < count; i++) {
        match = bytes[i] == end[match] ? match + 1 : bytes[i] == '\r';
        if (match == 4) {
            match = 0;
            found++;
        }
    }
    matched[fd] = match;
    return found;
}

static long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static void be_busy(void) {
    for (long end_ns = now_ns() + busy_ns; now_ns() < end_ns;)
        ;
}

static void serve(int fd) {
    static char request[65536];
    ssize_t got = recv(fd, request, sizeof request, 0);
    if (got <= 0) {
        close(fd);
        return;
    }
    for (int due = count_requests(fd, request, got); due > 0; due--) {
        if (busy_ns > 0)
            be_busy();
        if (send(fd, REPLY, sizeof REPLY - 1, MSG_NOSIGNAL) != sizeof REPLY - 1) {
            close(fd); /* a client that does not read */
            return;
        }
    }
    if (memmem(request, (size_t)got, LAST, sizeof LAST - 1) != NULL)
        close(fd);
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) {
        fprintf(stderr, "usage: sink IPV4 PORT [BUSY_US]\n");
        return 2;
    }
    busy_ns = argc == 4 ? atol(argv[3]) * 1000 : 0;
    int listener = listen_on(argv[1], argv[2]);
    int epoll = epoll_create1(0);
    struct epoll_event interest = {.events = EPOLLIN, .data.fd = listener}, ready[EVENTS];
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &interest) < 0)
        fail("epoll");
    for (;;) {
        int count = epoll_wait(epoll, ready, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            if (ready[i].data.fd == listener)
                accept_all(epoll, listener);
            else
                serve(ready[i].data.fd);
        }
    }
}
