/* What DPDK keeps beside a block or a zone. All of it may be gone, and is read by peek(). */

/* Where the zone's memory is; 0 for a zone that was freed before (DPDK clears it) or that is no readable pointer. */
uint64_t zone_address(const struct memzone *zone) {
    uint64_t address;
    return peek((uint64_t) &zone->address, &address, sizeof address) ? address : 0;
}

/* ---- struct malloc_elem, 128 bytes before the block (DPDK lib/eal/common/malloc_elem.h; the same since 18.05) ---- */

#define ELEMENT_BYTES 128
#define ELEMENT_STATE 48 /* uint32_t, the state in the low 3 bits; then uint32_t pad, then size_t size */
#define ELEMENT_BUSY 1

static int read_element(uint64_t element, uint32_t *state, uint32_t *pad, uint64_t *size) {
    uint64_t words[2];
    if (!peek(element + ELEMENT_STATE, words, sizeof words)) return 0;
    *state = (uint32_t) words[0] & 7;
    *pad = (uint32_t) (words[0] >> 32);
    *size = words[1];
    return 1;
}

/* The block that malloc_heap_free is given the element of; 0 for none. */
uint64_t block_of_element(uint64_t element) {
    uint32_t state, pad;
    uint64_t size;
    if (element == 0) return 0;
    if (!read_element(element, &state, &pad, &size) || state != ELEMENT_BUSY) pad = 0;
    return element + pad + ELEMENT_BYTES;
}

/* How large the block is that malloc_heap_alloc returned, in bytes, what DPDK rounded it up by included. */
uint64_t size_of_block(uint64_t block) {
    uint32_t state, pad;
    uint64_t size;
    return read_element(block - ELEMENT_BYTES, &state, &pad, &size) && size >= ELEMENT_BYTES ? size - ELEMENT_BYTES : 0;
}
