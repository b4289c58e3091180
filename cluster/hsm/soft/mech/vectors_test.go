package mech

import (
	"bytes"
	"crypto/sha512"
	"fmt"
	"testing"
)

// RFC 3394, section 4, all six.
func TestRFC3394(t *testing.T) {
	const kek = "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"
	const key = "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F"
	for _, c := range []struct {
		kek, key int
		want     string
	}{
		{16, 16, "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5"},
		{24, 16, "96778B25AE6CA435F92B5B97C050AED2468AB8A17AD84E5D"},
		{32, 16, "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7"},
		{24, 24, "031D33264E15D33268F24EC260743EDCE1C6C7DDEE725A936BA814915C6762D2"},
		{32, 24, "A8F9BC1612C68B3FF6E6F4FBE30E71E4769C8B80A32CB8958CD5D17D6B254DA1"},
		{32, 32, "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"},
	} {
		checkWrap(t, AESKW, unhex(t, kek)[:c.kek], unhex(t, key)[:c.key], unhex(t, c.want))
	}
}

// RFC 5649, section 6, both.
func TestRFC5649(t *testing.T) {
	kek := unhex(t, "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
	checkWrap(t, AESKWP, kek, unhex(t, "c37b7e6492584340bed12207808941155068f738"),
		unhex(t, "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"))
	checkWrap(t, AESKWP, kek, unhex(t, "466f7250617369"), unhex(t, "afbeb0f07dfbf5419200f2ccb50bb24f"))
}

func checkWrap(t *testing.T, mechanism string, kek, key, want []byte) {
	t.Helper()
	k := secret(t, AES, kek)
	for _, name := range []string{mechanism, map[string]string{AESKW: "aes-no-pad", AESKWP: "aes-zero-pad"}[mechanism]} {
		equal(t, name, must(k.Wrap(nil, CryptParams{Mechanism: name}, key))(t), want)
		equal(t, name+" undone", must(k.Unwrap(nil, CryptParams{Mechanism: name}, want))(t), key)
	}
}

// NIST SP 800-38B, the examples of its publication and the 20-byte ones of its revision.
func TestCMACVectors(t *testing.T) {
	msg := unhex(t, "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710")
	for _, c := range []struct {
		key, k1, k2 string
		macs        map[int]string
	}{
		{"2b7e151628aed2a6abf7158809cf4f3c", "fbeed618357133667c85e08f7236a8de", "f7ddac306ae266ccf90bc11ee46d513b", map[int]string{
			0: "bb1d6929e95937287fa37d129b756746", 16: "070a16b46b4d4144f79bdd9dd04a287c", 20: "7d85449ea6ea19c823a7bf78837dfade",
			40: "dfa66747de9ae63030ca32611497c827", 64: "51f0bebf7e3b9d92fc49741779363cfe"}},
		{"8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b", "448a5b1c93514b273ee6439dd4daa296", "8914b63926a2964e7dcc873ba9b5452c", map[int]string{
			0: "d17ddf46adaacde531cac483de7a9367", 16: "9e99a7bf31e710900662f65e617c5184", 20: "3d75c194ed96070444a9fa7ec740ecf8",
			40: "8a1de5be2eb31aad089a82e6ee908b0e", 64: "a1d5df0eed790f794d77589659f39a11"}},
		{"603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", "cad1ed03299eedac2e9a99808621502f", "95a3da06533ddb585d3533010c42a0d9", map[int]string{
			0: "028962f61b7bf89efc6b551f4667d983", 16: "28a7023f452e8f82bd4bf28d8c37c35c", 20: "156727dc0878944a023c1fe03bad6d93",
			40: "aaf3d8f1de5640c232f5b169b9c911e6", 64: "e1992190549f6ed5696a2c056c315410"}},
	} {
		k := secret(t, AES, unhex(t, c.key))
		equal(t, "K1", k.k().cmac.k1[:], unhex(t, c.k1))
		equal(t, "K2", k.k().cmac.k2[:], unhex(t, c.k2))
		for n, want := range c.macs {
			equal(t, fmt.Sprintf("cmac of %d bytes", n), must(k.MAC(SignParams{Mechanism: AESCMAC}, msg[:n]))(t), unhex(t, want))
		}
	}
}

// RFC 4231, all seven (the fifth is truncated there), and RFC 2202, the first two, for SHA-1.
func TestHMACVectors(t *testing.T) {
	for _, c := range []struct {
		key, data []byte
		want      [5]string // by hashNames
	}{
		{bytes.Repeat([]byte{0x0b}, 20), []byte("Hi There"), [5]string{
			"b617318655057264e28bc0b6fb378c8ef146be00",
			"896fb1128abbdf196832107cd49df33f47b4b1169912ba4f53684b22",
			"b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
			"afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6",
			"87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854"}},
		{[]byte("Jefe"), []byte("what do ya want for nothing?"), [5]string{
			"effcdf6ae5eb2fa2d27416d5f184df9c259a7c79",
			"a30e01098bc6dbbf45690f3a7e9e6d0f8bbea2a39e6148008fd05e44",
			"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
			"af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
			"164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"}},
		{bytes.Repeat([]byte{0xaa}, 20), bytes.Repeat([]byte{0xdd}, 50), [5]string{"",
			"7fb3cb3588c6c1f6ffa9694d7d6ad2649365b0c1f65d69d1ec8333ea",
			"773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
			"88062608d3e6ad8a0aa2ace014c8a86f0aa635d947ac9febe83ef4e55966144b2a5ab39dc13814b94e3ab6e101a34f27",
			"fa73b0089d56a284efb0f0756c890be9b1b5dbdd8ee81a3655f83e33b2279d39bf3e848279a722c806b485a47e67c807b946a337bee8942674278859e13292fb"}},
		{unhex(t, "0102030405060708090a0b0c0d0e0f10111213141516171819"), bytes.Repeat([]byte{0xcd}, 50), [5]string{"",
			"6c11506874013cac6a2abc1bb382627cec6a90d86efc012de7afec5a",
			"82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
			"3e8a69b7783c25851933ab6290af6ca77a9981480850009cc5577c6e1f573b4e6801dd23c4a7d679ccf8a386c674cffb",
			"b0ba465637458c6990e5a8c5f61d4af7e576d97ff94b872de76f8050361ee3dba91ca5c11aa25eb4d679275cc5788063a5f19741120c4f2de2adebeb10a298dd"}},
		{bytes.Repeat([]byte{0x0c}, 20), []byte("Test With Truncation"), [5]string{"",
			"0e2aea68a90c8d37c988bcdb9fca6fa8", "a3b6167473100ee06e0c796c2955552b", "3abf34c3503b2a23a46efc619baef897", "415fad6271580a531d4179bc891d87a6"}},
		{bytes.Repeat([]byte{0xaa}, 131), []byte("Test Using Larger Than Block-Size Key - Hash Key First"), [5]string{"",
			"95e9a0db962095adaebe9b2d6f0dbce2d499f112f2d2b7273fa6870e",
			"60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
			"4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c60c2ef6ab4030fe8296248df163f44952",
			"80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f3526b56d037e05f2598bd0fd2215d6a1e5295e64f73f63f0aec8b915a985d786598"}},
		{bytes.Repeat([]byte{0xaa}, 131), []byte("This is a test using a larger than block-size key and a larger than block-size data. " +
			"The key needs to be hashed before being used by the HMAC algorithm."), [5]string{"",
			"3a854166ac5d9f023f54d517d0b39dbd946770db9c2b95c9f6f565d1",
			"9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
			"6617178e941f020d351e2f254e8fd32c602420feb0b8fb9adccebb82461e99c5a678cc31e799176d3860e6110c46523e",
			"e37b6a775dc87dbaa4dfa9f96e5e3ffddebd71f8867289865df5a32d20cdc944b6022cac3c4982b10d5eeb55c3e4de15134676fb6de0446065c97440fa8c6a58"}},
	} {
		k := secret(t, GenericSecret, c.key)
		for i, name := range hashNames {
			want := unhex(t, c.want[i])
			got := must(k.MAC(SignParams{Mechanism: HMAC, Hash: name}, c.data))(t)
			equal(t, "hmac "+name, got[:len(want)], want)
		}
	}
}

// RFC 8032, section 7.1 (all but the long one) and 7.3.
func TestEd25519Vectors(t *testing.T) {
	abc := sha512.Sum512([]byte("abc"))
	for _, c := range []struct {
		mechanism, seed, public, sig string
		msg                          []byte
	}{
		{EdDSA, "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
			"e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b", nil},
		{EdDSA, "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
			"92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00", []byte{0x72}},
		{EdDSA, "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7", "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
			"6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a", []byte{0xaf, 0x82}},
		{EdDSA, "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42", "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
			"dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704", abc[:]},
		{EdDSAph, "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42", "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
			"98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae4131f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406", []byte("abc")},
	} {
		k := must(ParsePrivate(append(unhex(t, "302e020100300506032b657004220420"), unhex(t, c.seed)...)))(t)
		equal(t, "public key", k.PublicKey().Bits(), unhex(t, c.public))
		p := SignParams{Mechanism: c.mechanism}
		equal(t, "signature", must(k.Sign(nil, p, c.msg))(t), unhex(t, c.sig))
		if err := k.PublicKey().Verify(p, c.msg, unhex(t, c.sig)); err != nil {
			t.Error(err)
		}
	}
}

// RFC 6979, section A.2.5, and the customary vector on secp256k1 with private key 1.
func TestECDSAVectors(t *testing.T) {
	p256 := must(parsePoint(infoOf(Secp256r1), unhex(t, "04"+
		"60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6"+"7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299")))(t)
	one := must(newECPrivate(infoOf(Secp256k1), append(make([]byte, 31), 1)))(t)
	equal(t, "base point", one.PublicKey().Bits(), unhex(t, "04"+
		"79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"+"483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8"))
	for _, c := range []struct {
		key            *PublicKey
		hash, msg, sig string
	}{
		{&PublicKey{hide(p256)}, "sha256", "sample", "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"},
		{&PublicKey{hide(p256)}, "sha1", "sample", "61340C88C3AAEBEB4F6D667F672CA9759A6CCAA9FA8811313039EE4A35471D326D7F147DAC089441BB2E2FE8F7A3FA264B9C475098FDCF6E00D7C996E1B8B7EB"},
		{one.PublicKey(), "sha256", "Satoshi Nakamoto", "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d82442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5"},
	} {
		if err := c.key.Verify(SignParams{Mechanism: ECDSA, Hash: c.hash}, []byte(c.msg), unhex(t, c.sig)); err != nil {
			t.Errorf("%s %s: %v", c.hash, c.msg, err)
		}
	}
}

// NIST CAVP, ECC CDH primitive, count 0 of P-224 and P-256.
func TestECDHVectors(t *testing.T) {
	for _, c := range []struct {
		curve         Curve
		d, peer, want string
	}{
		{Secp224r1, "8346a60fc6f293ca5a0d2af68ba71d1dd389e5e40837942df3e43cbd",
			"04af33cd0629bc7e996320a3f40368f74de8704fa37b8fab69abaae280882092ccbba7930f419a8a4f9bb16978bbc3838729992559a6f2e2d7",
			"7d96f9a3bd3c05cf5cc37feb8b9d5209d5c2597464dec3e9983743e8"},
		{Secp256r1, "7d7dc5f71eb29ddaf80d6214632eeae03d9058af1fb6d22ed80badb62bc1a534",
			"04700c48f77f56584c5cc632ca65640db91b6bacce3a4df6b42ce7cc838833d287db71e509e3fd9b060ddb20ba5c51dcc5948d46fbf640dfe0441782cab85fa4ac",
			"46fc62106420ff012e54a434fbdd2d25ccc5852060561e68040dd7778997bd7b"},
	} {
		k := must(newECPrivate(infoOf(c.curve), unhex(t, c.d)))(t)
		equal(t, string(c.curve), must(k.ECDH(unhex(t, c.peer)))(t), unhex(t, c.want))
	}
}

// NIST CAVP, ANSI X9.63: SHA-256 without and with shared info.
func TestX963Vectors(t *testing.T) {
	for _, c := range []struct{ z, info, want string }{
		{"96c05619d56c328ab95fe84b18264b08725b85e33fd34f08", "", "443024c3dae66b95e6f5670601558f71"},
		{"96f600b73ad6ac5629577eced51743dd2c24c21b1ac83ee4", "", "b6295162a7804f5667ba9070f82fa522"},
		{"de4ec3f6b2e9b7b5b6160acd5363c1b1f250e17ee731dbd6", "", "c8df626d5caaabf8a1b2a3f9061d2420"},
		{"22518b10e70f2a3f243810ae3254139efbee04aa57c7af7d", "75eef81aa3041e33b80971203d2c0c52",
			"c498af77161cc59f2962b9a713e2b215152d139766ce34a776df11866a69bf2e52a13d9c7c6fc878c50c5ea0bc7b00e0da2447cfd874f6cf92f30d0097111485500c90c3af8b487872d04685d14c8d1dc8d7fa08beb0ce0ababc11f0bd496269142d43525a78e5bc79a17f59676a5706dc54d54d4d1f0bd7e386128ec26afc21"},
		{"7e335afa4b31d772c0635c7b0e06f26fcd781df947d2990a", "d65a4812733f8cdbcdfb4b2f4c191d87",
			"c0bd9e38a8f9de14c2acd35b2f3410c6988cf02400543631e0d6a4c1d030365acbf398115e51aaddebdc9590664210f9aa9fed770d4c57edeafa0b8c14f93300865251218c262d63dadc47dfa0e0284826793985137e0a544ec80abf2fdf5ab90bdaea66204012efe34971dc431d625cd9a329b8217cc8fd0d9f02b13f2f6b0b"},
	} {
		want := unhex(t, c.want)
		equal(t, "kdf", must(X963KDF("sha256", unhex(t, c.z), unhex(t, c.info), len(want)))(t), want)
	}
}

// RFC 8009, appendix A: KDF-HMAC-SHA2 is SP 800-108 in counter mode without a context.
func TestSP800108Vectors(t *testing.T) {
	const base128 = "3705D96080C17728A0E800EAB6E0D23C"
	const base256 = "6D404D37FAF79F9DF0D33568D320669800EB4836472EA8A026D16B7182460C52"
	for _, c := range []struct{ hash, key, label, want string }{
		{"sha256", base128, "0000000299", "B31A018A48F54776F403E9A396325DC3"},
		{"sha256", base128, "00000002AA", "9B197DD1E8C5609D6E67C3E37C62C72E"},
		{"sha256", base128, "0000000255", "9FDA0E56AB2D85E1569A688696C26A6C"},
		{"sha384", base256, "0000000299", "EF5718BE86CC84963D8BBB5031E9F5C4BA41F28FAF69E73D"},
		{"sha384", base256, "00000002AA", "56AB22BEE63D82D7BC5227F6773F8EA7A5EB1C825160C38312980C442E5C7E49"},
		{"sha384", base256, "0000000255", "69B16514E3CD8E56B82010D5C73012B622C4D00FFC23ED1F"},
	} {
		want := unhex(t, c.want)
		equal(t, "kdf", must(SP800108Counter(c.hash, unhex(t, c.key), unhex(t, c.label), nil, len(want)))(t), want)
	}
}

// McGrew and Viega, The Galois/Counter Mode of Operation, cases 14 and 16; NIST SP 800-38A, F.2.1.
func TestCipherVectors(t *testing.T) {
	zero := secret(t, AES, make([]byte, 32))
	equal(t, "gcm 14", must(zero.Decrypt(nil, CryptParams{Mechanism: AESGCM}, unhex(t, "000000000000000000000000"+
		"cea7403d4d606b6e074ec5d3baf39d18"+"d0d1c8a799996bf0265b98b5d48ab919")))(t), make([]byte, 16))
	k := secret(t, AES, unhex(t, "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"))
	p := CryptParams{Mechanism: "cloudhsm-aes-gcm", AAD: unhex(t, "feedfacedeadbeeffeedfacedeadbeefabaddad2")}
	equal(t, "gcm 16", must(k.Decrypt(nil, p, unhex(t, "cafebabefacedbaddecaf888"+
		"522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"+
		"76fc6ece0f4e1768cddf8853bb2d551b")))(t),
		unhex(t, "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"))

	cbc := secret(t, AES, unhex(t, "2b7e151628aed2a6abf7158809cf4f3c"))
	iv := bytes.NewReader(unhex(t, "000102030405060708090a0b0c0d0e0f"))
	out := must(cbc.Encrypt(iv, CryptParams{Mechanism: AESCBCPad}, unhex(t, "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")))(t)
	equal(t, "cbc", out[:48], unhex(t, "000102030405060708090a0b0c0d0e0f"+"7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"))
}

// FIPS 197 makes the check value of the AES-128 key of zeros 66e94b.
func TestCheckValues(t *testing.T) {
	equal(t, "aes", must(CheckValueSecret(AES, make([]byte, 16)))(t), unhex(t, "66e94b"))
	if v := must(CheckValueSecret(GenericSecret, make([]byte, 16)))(t); len(v) != 0 {
		t.Errorf("generic-secret has check value %x", v)
	}
	_, err := CheckValueSecret(AES, nil)
	wantErr(t, "no key", err, ErrKeySize)
	_, err = CheckValuePublic(nil)
	wantErr(t, "no key", err, ErrKey)
}
