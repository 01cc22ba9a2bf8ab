/* See shim.h. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

#include <rte_dev.h>

/*
 * The Rust side reads and writes mbufs by fixed offsets (src/mbuf.rs). A release that moves a field
 * fails here, at build time.
 */
#define AT(field, offset) \
	_Static_assert(offsetof(struct rte_mbuf, field) == (offset), "rte_mbuf." #field " has moved")
AT(buf_addr, 0);
AT(buf_iova, 8);
AT(data_off, 16);
AT(refcnt, 18);
AT(nb_segs, 20);
AT(port, 22);
AT(ol_flags, 24);
AT(packet_type, 32);
AT(pkt_len, 36);
AT(data_len, 40);
AT(vlan_tci, 42);
AT(hash, 44);
AT(vlan_tci_outer, 52);
AT(buf_len, 54);
AT(pool, 56);
AT(next, 64);
AT(tx_offload, 72);
AT(shinfo, 80);
AT(priv_size, 88);
AT(timesync, 90);
AT(dynfield1, 92);
_Static_assert(sizeof(struct rte_mbuf) == 128, "rte_mbuf has another size");
_Static_assert(sizeof(struct rte_mbuf_ext_shared_info) == 24, "rte_mbuf_ext_shared_info has another size");
_Static_assert(offsetof(struct rte_mbuf_ext_shared_info, free_cb) == 0, "free_cb has moved");
_Static_assert(offsetof(struct rte_mbuf_ext_shared_info, fcb_opaque) == 8, "fcb_opaque has moved");
_Static_assert(offsetof(struct rte_mbuf_ext_shared_info, refcnt) == 16, "refcnt has moved");
_Static_assert(RTE_PKTMBUF_HEADROOM == 128, "another headroom");

/* Flags that src/mbuf.rs repeats. */
_Static_assert(RTE_MBUF_F_EXTERNAL == 1ULL << 61, "RTE_MBUF_F_EXTERNAL");
_Static_assert(RTE_MBUF_F_INDIRECT == 1ULL << 62, "RTE_MBUF_F_INDIRECT");
_Static_assert(RTE_MBUF_F_TX_IPV6 == 1ULL << 56, "RTE_MBUF_F_TX_IPV6");
_Static_assert(RTE_MBUF_F_TX_IPV4 == 1ULL << 55, "RTE_MBUF_F_TX_IPV4");
_Static_assert(RTE_MBUF_F_TX_IP_CKSUM == 1ULL << 54, "RTE_MBUF_F_TX_IP_CKSUM");
_Static_assert(RTE_MBUF_F_TX_UDP_CKSUM == 3ULL << 52, "RTE_MBUF_F_TX_UDP_CKSUM");
_Static_assert(RTE_MBUF_F_TX_TCP_CKSUM == 1ULL << 52, "RTE_MBUF_F_TX_TCP_CKSUM");
_Static_assert(RTE_MBUF_F_TX_TCP_SEG == 1ULL << 50, "RTE_MBUF_F_TX_TCP_SEG");
_Static_assert(RTE_MBUF_F_RX_IP_CKSUM_BAD == 1ULL << 4, "RTE_MBUF_F_RX_IP_CKSUM_BAD");
_Static_assert(RTE_MBUF_F_RX_IP_CKSUM_GOOD == 1ULL << 7, "RTE_MBUF_F_RX_IP_CKSUM_GOOD");
_Static_assert(RTE_MBUF_F_RX_L4_CKSUM_BAD == 1ULL << 3, "RTE_MBUF_F_RX_L4_CKSUM_BAD");
_Static_assert(RTE_MBUF_F_RX_L4_CKSUM_GOOD == 1ULL << 8, "RTE_MBUF_F_RX_L4_CKSUM_GOOD");

const uint64_t SHIM_RX_OFFLOAD_IPV4_CKSUM = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
const uint64_t SHIM_RX_OFFLOAD_UDP_CKSUM = RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
const uint64_t SHIM_RX_OFFLOAD_TCP_CKSUM = RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
const uint64_t SHIM_RX_OFFLOAD_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
const uint64_t SHIM_TX_OFFLOAD_IPV4_CKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
const uint64_t SHIM_TX_OFFLOAD_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
const uint64_t SHIM_TX_OFFLOAD_TCP_CKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
const uint64_t SHIM_TX_OFFLOAD_TCP_TSO = RTE_ETH_TX_OFFLOAD_TCP_TSO;
const uint64_t SHIM_TX_OFFLOAD_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
const uint64_t SHIM_RSS_IP_TCP_UDP = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP;

int
shim_errno(void)
{
	return rte_errno;
}

uint32_t
shim_lcore_id(void)
{
	return rte_lcore_id();
}

static shim_log_sink log_sink;

static ssize_t
log_write(void *cookie, const char *text, size_t len)
{
	int level = rte_log_cur_msg_loglevel();

	(void)cookie;
	log_sink(level < 0 ? RTE_LOG_INFO : (uint32_t)level, text, len);
	return (ssize_t)len;
}

int
shim_log_open(shim_log_sink sink)
{
	cookie_io_functions_t functions = { .write = log_write };
	FILE *stream;

	log_sink = sink;
	stream = fopencookie(NULL, "w", functions);
	if (stream == NULL)
		return -errno;
	/* DPDK flushes after each message, so a message comes in one piece. */
	return rte_openlog_stream(stream);
}

int
shim_port_info(uint16_t port, struct shim_port_info *info)
{
	struct rte_eth_dev_info dev;
	int rc;

	memset(&dev, 0, sizeof(dev));
	memset(info, 0, sizeof(*info));
	rc = rte_eth_dev_info_get(port, &dev);
	if (rc != 0)
		return rc;
	if (dev.driver_name != NULL)
		snprintf(info->driver, sizeof(info->driver), "%s", dev.driver_name);
	info->rx_offloads = dev.rx_offload_capa;
	info->tx_offloads = dev.tx_offload_capa;
	info->rss_types = dev.flow_type_rss_offloads;
	info->max_rx_frame = dev.max_rx_pktlen;
	info->max_rx_queues = dev.max_rx_queues;
	info->max_tx_queues = dev.max_tx_queues;
	info->min_mtu = dev.min_mtu;
	info->max_mtu = dev.max_mtu;
	info->max_tx_segments = dev.tx_desc_lim.nb_seg_max;
	info->max_tx_segments_mtu = dev.tx_desc_lim.nb_mtu_seg_max;
	info->socket = (int16_t)rte_eth_dev_socket_id(port);
	return 0;
}

int
shim_port_configure(uint16_t port, const struct shim_port_config *config)
{
	struct rte_eth_conf conf;

	memset(&conf, 0, sizeof(conf));
	conf.rxmode.mtu = config->mtu;
	conf.rxmode.offloads = config->rx_offloads;
	conf.txmode.offloads = config->tx_offloads;
	conf.intr_conf.rxq = config->rx_interrupts != 0;
	if (config->rss_types != 0 && config->rx_queues > 1) {
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rx_adv_conf.rss_conf.rss_hf = config->rss_types;
	}
	return rte_eth_dev_configure(port, config->rx_queues, config->tx_queues, &conf);
}

int
shim_rx_queue_setup(uint16_t port, uint16_t queue, uint16_t descriptors,
		    uint64_t offloads, struct rte_mempool *pool)
{
	struct rte_eth_dev_info dev;
	struct rte_eth_rxconf conf;
	int rc;

	memset(&dev, 0, sizeof(dev));
	rc = rte_eth_dev_info_get(port, &dev);
	if (rc != 0)
		return rc;
	conf = dev.default_rxconf;
	conf.offloads = offloads;
	return rte_eth_rx_queue_setup(port, queue, descriptors,
				      (unsigned int)rte_eth_dev_socket_id(port), &conf, pool);
}

int
shim_tx_queue_setup(uint16_t port, uint16_t queue, uint16_t descriptors, uint64_t offloads)
{
	struct rte_eth_dev_info dev;
	struct rte_eth_txconf conf;
	int rc;

	memset(&dev, 0, sizeof(dev));
	rc = rte_eth_dev_info_get(port, &dev);
	if (rc != 0)
		return rc;
	conf = dev.default_txconf;
	conf.offloads = offloads;
	return rte_eth_tx_queue_setup(port, queue, descriptors,
				      (unsigned int)rte_eth_dev_socket_id(port), &conf);
}

int
shim_port_stats(uint16_t port, struct shim_port_stats *stats)
{
	struct rte_eth_stats dev;
	int rc;

	memset(&dev, 0, sizeof(dev));
	memset(stats, 0, sizeof(*stats));
	rc = rte_eth_stats_get(port, &dev);
	if (rc != 0)
		return rc;
	stats->rx_frames = dev.ipackets;
	stats->tx_frames = dev.opackets;
	stats->rx_missed = dev.imissed;
	stats->rx_errors = dev.ierrors;
	stats->rx_no_mbuf = dev.rx_nombuf;
	stats->tx_errors = dev.oerrors;
	return 0;
}

int
shim_port_mac(uint16_t port, uint8_t mac[6])
{
	struct rte_ether_addr address;
	int rc;

	memset(&address, 0, sizeof(address));
	rc = rte_eth_macaddr_get(port, &address);
	memcpy(mac, address.addr_bytes, 6);
	return rc;
}

int
shim_port_set_mac(uint16_t port, const uint8_t mac[6])
{
	struct rte_ether_addr address;

	memcpy(address.addr_bytes, mac, 6);
	return rte_eth_dev_default_mac_addr_set(port, &address);
}

int
shim_port_link_up(uint16_t port)
{
	struct rte_eth_link link;
	int rc;

	memset(&link, 0, sizeof(link));
	rc = rte_eth_link_get_nowait(port, &link);
	if (rc != 0)
		return rc;
	return link.link_status == RTE_ETH_LINK_UP;
}

static int
map_or_unmap(uint16_t port, void *address, size_t len, int map)
{
	struct rte_eth_dev_info dev;
	int rc;

	memset(&dev, 0, sizeof(dev));
	rc = rte_eth_dev_info_get(port, &dev);
	if (rc != 0)
		return rc;
	if (dev.device == NULL)
		return -ENODEV;
	/* With IOVA as VA the device's address of a byte is its virtual address. */
	rc = map ? rte_dev_dma_map(dev.device, address, (uint64_t)(uintptr_t)address, len)
		 : rte_dev_dma_unmap(dev.device, address, (uint64_t)(uintptr_t)address, len);
	return rc == 0 ? 0 : -rte_errno;
}

int
shim_dma_map(uint16_t port, void *address, size_t len)
{
	return map_or_unmap(port, address, len, 1);
}

int
shim_dma_unmap(uint16_t port, void *address, size_t len)
{
	return map_or_unmap(port, address, len, 0);
}

uint16_t
shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, mbufs, count);
}

uint16_t
shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, mbufs, count);
}

uint16_t
shim_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_prepare(port, queue, mbufs, count);
}

int
shim_mbuf_get_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count)
{
	return rte_mempool_get_bulk(pool, (void **)mbufs, count);
}

void
shim_mbuf_put_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count)
{
	rte_mempool_put_bulk(pool, (void *const *)mbufs, count);
}

void
shim_mbuf_free(struct rte_mbuf *mbuf)
{
	rte_pktmbuf_free(mbuf);
}

void
shim_mbuf_put(struct rte_mbuf *mbuf)
{
	rte_mbuf_raw_free(mbuf);
}

void
shim_pool_flush_cache(struct rte_mempool *pool)
{
	struct rte_mempool_cache *cache = rte_mempool_default_cache(pool, rte_lcore_id());

	if (cache != NULL)
		rte_mempool_cache_flush(cache, pool);
}

unsigned int
shim_pool_free_here(struct rte_mempool *pool)
{
	const struct rte_mempool_cache *cache = rte_mempool_default_cache(pool, rte_lcore_id());

	return rte_mempool_get_ops(pool->ops_index)->get_count(pool) + (cache == NULL ? 0 : cache->len);
}

unsigned int
shim_ring_dequeue(struct rte_ring *ring, void **objects, unsigned int count)
{
	return rte_ring_dequeue_burst(ring, objects, count, NULL);
}
