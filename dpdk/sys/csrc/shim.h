/*
 * What dpdk-sys offers beside DPDK's own exported functions.
 *
 * Most of DPDK's data path is `static inline`, so it has no symbol to link with; and some structures
 * change between releases. Both are wrapped here, in plain C that compiles against 22.11 and all
 * later releases, with structures of our own that do not change.
 */
#ifndef MILLSTREAM_DPDK_SHIM_H
#define MILLSTREAM_DPDK_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_eth_ring.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

/* Offloads and flags whose macros have no constant that a binding generator can see. */
extern const uint64_t SHIM_RX_OFFLOAD_IPV4_CKSUM;
extern const uint64_t SHIM_RX_OFFLOAD_UDP_CKSUM;
extern const uint64_t SHIM_RX_OFFLOAD_TCP_CKSUM;
extern const uint64_t SHIM_RX_OFFLOAD_SCATTER;
extern const uint64_t SHIM_TX_OFFLOAD_IPV4_CKSUM;
extern const uint64_t SHIM_TX_OFFLOAD_UDP_CKSUM;
extern const uint64_t SHIM_TX_OFFLOAD_TCP_CKSUM;
extern const uint64_t SHIM_TX_OFFLOAD_TCP_TSO;
extern const uint64_t SHIM_TX_OFFLOAD_MULTI_SEGS;
extern const uint64_t SHIM_RSS_IP_TCP_UDP;

/* What a port can do: the part of rte_eth_dev_info that does not differ between releases. */
struct shim_port_info {
	char driver[32];
	uint64_t rx_offloads;
	uint64_t tx_offloads;
	uint64_t rss_types;
	uint32_t max_rx_frame;
	uint16_t max_rx_queues;
	uint16_t max_tx_queues;
	uint16_t min_mtu;
	uint16_t max_mtu;
	uint16_t max_tx_segments;
	uint16_t max_tx_segments_mtu;
	int16_t socket;
};

/* What is asked of a port. */
struct shim_port_config {
	uint64_t rx_offloads;
	uint64_t tx_offloads;
	uint64_t rss_types;
	uint16_t rx_queues;
	uint16_t tx_queues;
	uint16_t mtu; /* 0: the driver's own */
	uint16_t rx_interrupts; /* 0: no */
};

/* A port's basic counters. */
struct shim_port_stats {
	uint64_t rx_frames;
	uint64_t tx_frames;
	uint64_t rx_missed;
	uint64_t rx_errors;
	uint64_t rx_no_mbuf;
	uint64_t tx_errors;
};

/* Gets each log message: level (RTE_LOG_*), text (not terminated), bytes of text. */
typedef void (*shim_log_sink)(uint32_t level, const char *text, size_t len);

int shim_errno(void);
uint32_t shim_lcore_id(void);
int shim_log_open(shim_log_sink sink);

int shim_port_info(uint16_t port, struct shim_port_info *info);
int shim_port_configure(uint16_t port, const struct shim_port_config *config);
int shim_rx_queue_setup(uint16_t port, uint16_t queue, uint16_t descriptors,
			uint64_t offloads, struct rte_mempool *pool);
int shim_tx_queue_setup(uint16_t port, uint16_t queue, uint16_t descriptors,
			uint64_t offloads);
int shim_port_stats(uint16_t port, struct shim_port_stats *stats);
int shim_port_mac(uint16_t port, uint8_t mac[6]);
int shim_port_set_mac(uint16_t port, const uint8_t mac[6]);
/* 1 up, 0 down, negative errno. Does not wait. */
int shim_port_link_up(uint16_t port);
int shim_dma_map(uint16_t port, void *address, size_t len);
int shim_dma_unmap(uint16_t port, void *address, size_t len);

uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
uint16_t shim_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);

/* Takes `count` untouched mbufs out of a pool, or none: 0 or negative errno. */
int shim_mbuf_get_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count);
/* Gives mbufs of one pool back that are as shim_mbuf_get_bulk gave them. */
void shim_mbuf_put_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count);
/* Frees an mbuf and all that hangs on it. */
void shim_mbuf_free(struct rte_mbuf *mbuf);
/* Gives back one unchained, unshared mbuf that has its own data. */
void shim_mbuf_put(struct rte_mbuf *mbuf);
/* Empties the calling lcore's cache into the pool itself, for other lcores to find. */
void shim_pool_flush_cache(struct rte_mempool *pool);
/* Objects in the pool itself and in the calling lcore's cache: not those in other lcores' caches. */
unsigned int shim_pool_free_here(struct rte_mempool *pool);
unsigned int shim_ring_dequeue(struct rte_ring *ring, void **objects, unsigned int count);

#endif
