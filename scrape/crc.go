package scrape

import "hash/crc32"

// combineCRC returns the CRC-32 of two texts joined. first and second are their
// checksums, size is that of the second in bytes. The polynomial of the first is
// multiplied by x^(8 size), and the second is added. After crc32_combine of zlib (Mark
// Adler), which it equals.
func combineCRC(first, second uint32, size int64) uint32 {
	// x^(8 size) from the bits of size: square upon square of x^8.
	power, square := uint32(1)<<31, uint32(1)<<(31-8) // x^0 and x^8
	for n := uint64(size); n != 0; n >>= 1 {
		if n&1 != 0 {
			power = multiplyCRC(power, square)
		}
		square = multiplyCRC(square, square)
	}
	return multiplyCRC(power, first) ^ second
}

// multiplyCRC returns the product of two polynomials modulo that of the CRC. The
// highest bit is x^0.
func multiplyCRC(a, b uint32) uint32 {
	product := uint32(0)
	for ; a != 0; a <<= 1 {
		if a&(1<<31) != 0 {
			product ^= b
		}
		// b times x
		carry := b & 1
		b >>= 1
		if carry != 0 {
			b ^= crc32.IEEE
		}
	}
	return product
}
