/* Loads the segments of an ELF file as the dynamic loader would lay them out, into memory of exactly their size. */
#ifndef IMAGE_H
#define IMAGE_H

#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct image {
    uint8_t *bytes;
    uint64_t size;
    uint64_t lowest; /* the address in the file that bytes[0] has */
    uint64_t header, header_size; /* .eh_frame_hdr, offset into bytes */
    uint64_t frames, frames_size; /* .eh_frame, the same; 0 if there are no section headers */
};

/* Reads it up to the segment that holds .eh_frame_hdr, which ends the memory; returns 0 if that cannot be had. */
static int load_image(const char *path, struct image *image)
{
    FILE *file = fopen(path, "rb");
    uint64_t end = 0, length;
    uint8_t *whole;
    memset(image, 0, sizeof *image);
    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        return 0;
    length = (uint64_t)ftell(file);
    rewind(file);
    whole = malloc(length);
    if (fread(whole, 1, length, file) != length)
        return 0;
    fclose(file);
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)whole;
    const Elf64_Phdr *segments = (const Elf64_Phdr *)(whole + elf->e_phoff);
    uint64_t header = 0;
    image->lowest = ~0ULL;
    for (int i = 0; i < elf->e_phnum; i++) {
        if (segments[i].p_type == PT_LOAD && segments[i].p_vaddr < image->lowest)
            image->lowest = segments[i].p_vaddr & ~0xfffULL;
        if (segments[i].p_type == PT_GNU_EH_FRAME) {
            header = segments[i].p_vaddr;
            image->header_size = segments[i].p_filesz;
        }
    }
    for (int i = 0; i < elf->e_phnum; i++)
        if (segments[i].p_type == PT_LOAD && header >= segments[i].p_vaddr &&
            header < segments[i].p_vaddr + segments[i].p_filesz)
            end = segments[i].p_vaddr + segments[i].p_filesz;
    if (end == 0)
        return 0;
    image->size = end - image->lowest;
    image->header = header - image->lowest;
    image->bytes = calloc(1, image->size);
    for (int i = 0; i < elf->e_phnum; i++)
        if (segments[i].p_type == PT_LOAD && segments[i].p_vaddr + segments[i].p_filesz <= end)
            memcpy(image->bytes + (segments[i].p_vaddr - image->lowest), whole + segments[i].p_offset,
                   segments[i].p_filesz);
    if (elf->e_shnum != 0) {
        const Elf64_Shdr *sections = (const Elf64_Shdr *)(whole + elf->e_shoff);
        const char *names = (const char *)whole + sections[elf->e_shstrndx].sh_offset;
        for (int i = 0; i < elf->e_shnum; i++)
            if (strcmp(names + sections[i].sh_name, ".eh_frame") == 0) {
                image->frames = sections[i].sh_addr - image->lowest;
                image->frames_size = sections[i].sh_size;
            }
    }
    free(whole);
    return 1;
}

#endif
