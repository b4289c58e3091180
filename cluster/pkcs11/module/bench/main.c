/* How many operations per second a PKCS #11 module gives, and how long each takes:
 *
 *     modulebench MODULE PIN THREADS MILLISECONDS [OPERATION]
 *
 * For each operation, or the one named, one line: its name, operations per second, and the median and
 * 99th percentile of their duration in microseconds; or its name and "refused" with
 * the return value. Each thread has a session of its own; the keys that are used
 * are token keys, those that are made are session keys. */
#include "load.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SAMPLES = 1 << 17, MAX_THREADS = 64 };

static CK_FUNCTION_LIST *f;
static CK_SLOT_ID slot;
static CK_OBJECT_HANDLE rsa, ec, aes, generic;
static CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
static CK_ULONG length32 = 32, bits2048 = 2048;
static CK_BYTE p256[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}, f4[] = {1, 0, 1};
static CK_BYTE kilobyte[1024], digest[32];
#define ATTR(type, value) {(type), (void *)&(value), sizeof(value)}
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

struct worker {
	pthread_t thread;
	CK_SESSION_HANDLE session;
	CK_RV (*operation)(struct worker *);
	CK_RV rv;
	unsigned long count, kept;
	CK_ULONG nonce[2];
	float *took; /* microseconds of the first SAMPLES operations */
};

static atomic_bool stop;

static void must(CK_RV rv, const char *what)
{
	if (rv == CKR_OK)
		return;
	fprintf(stderr, "%s: 0x%lx\n", what, rv);
	exit(1);
}

static CK_RV sign(struct worker *w, CK_MECHANISM_TYPE type, CK_OBJECT_HANDLE key, CK_BYTE *data, CK_ULONG n)
{
	CK_MECHANISM m = {type, NULL, 0};
	CK_BYTE out[512];
	CK_ULONG length = sizeof out;
	CK_RV rv = f->C_SignInit(w->session, &m, key);
	return rv != CKR_OK ? rv : f->C_Sign(w->session, data, n, out, &length);
}

static CK_RV encrypt(struct worker *w, CK_MECHANISM m)
{
	CK_BYTE out[1100];
	CK_ULONG length = sizeof out;
	CK_RV rv = f->C_EncryptInit(w->session, &m, aes);
	return rv != CKR_OK ? rv : f->C_Encrypt(w->session, kilobyte, sizeof kilobyte, out, &length);
}

static CK_RV round_trip(struct worker *w)
{
	CK_SESSION_INFO info;
	return f->C_GetSessionInfo(w->session, &info);
}

static CK_RV rsa_sign(struct worker *w) { return sign(w, CKM_SHA256_RSA_PKCS, rsa, digest, sizeof digest); }
static CK_RV ec_sign(struct worker *w) { return sign(w, CKM_ECDSA, ec, digest, sizeof digest); }
static CK_RV hmac(struct worker *w) { return sign(w, CKM_SHA256_HMAC, generic, kilobyte, sizeof kilobyte); }
static CK_RV ecb(struct worker *w) { return encrypt(w, (CK_MECHANISM){CKM_AES_ECB, NULL, 0}); }

static CK_RV gcm(struct worker *w)
{
	w->nonce[0]++;
	CK_GCM_PARAMS p = {(CK_BYTE *)w->nonce, 12, 96, NULL, 0, 128};
	return encrypt(w, (CK_MECHANISM){CKM_AES_GCM, &p, sizeof p});
}

static CK_RV make_aes(struct worker *w)
{
	CK_MECHANISM m = {CKM_AES_KEY_GEN, NULL, 0};
	CK_ATTRIBUTE t[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_ENCRYPT, yes), ATTR(CKA_VALUE_LEN, length32)};
	CK_OBJECT_HANDLE key;
	return f->C_GenerateKey(w->session, &m, t, COUNT(t), &key);
}

static CK_RV make_pair(CK_SESSION_HANDLE session, CK_BBOOL token, CK_OBJECT_HANDLE *private)
{
	CK_MECHANISM m = {CKM_EC_KEY_PAIR_GEN, NULL, 0};
	CK_ATTRIBUTE pub[] = {ATTR(CKA_TOKEN, token), ATTR(CKA_VERIFY, yes), ATTR(CKA_EC_PARAMS, p256)};
	CK_ATTRIBUTE priv[] = {ATTR(CKA_TOKEN, token), ATTR(CKA_SIGN, yes)};
	CK_OBJECT_HANDLE public;
	return f->C_GenerateKeyPair(session, &m, pub, COUNT(pub), priv, COUNT(priv), &public, private);
}

static CK_RV make_ec(struct worker *w)
{
	CK_OBJECT_HANDLE key;
	return make_pair(w->session, no, &key);
}

static const struct {
	const char *name;
	CK_RV (*operation)(struct worker *);
} operations[] = {
	{"round-trip", round_trip}, {"rsa-2048-sign", rsa_sign}, {"p256-sign", ec_sign}, {"aes-gcm-1k", gcm},
	{"aes-ecb-1k", ecb},	    {"hmac-sha256-1k", hmac},	 {"aes-make", make_aes}, {"p256-make", make_ec},
};

/* prepare makes the keys that are used. */
static void prepare(CK_SESSION_HANDLE h)
{
	CK_MECHANISM make_rsa = {CKM_RSA_PKCS_KEY_PAIR_GEN, NULL, 0}, make_key = {CKM_AES_KEY_GEN, NULL, 0}, make_mac = {CKM_GENERIC_SECRET_KEY_GEN, NULL, 0};
	CK_ATTRIBUTE pub[] = {ATTR(CKA_TOKEN, yes), ATTR(CKA_VERIFY, yes), ATTR(CKA_MODULUS_BITS, bits2048), ATTR(CKA_PUBLIC_EXPONENT, f4)};
	CK_ATTRIBUTE priv[] = {ATTR(CKA_TOKEN, yes), ATTR(CKA_SIGN, yes)};
	CK_ATTRIBUTE key[] = {ATTR(CKA_TOKEN, yes), ATTR(CKA_ENCRYPT, yes), ATTR(CKA_VALUE_LEN, length32)};
	CK_ATTRIBUTE mac[] = {ATTR(CKA_TOKEN, yes), ATTR(CKA_SIGN, yes), ATTR(CKA_VALUE_LEN, length32)};
	CK_OBJECT_HANDLE public;
	must(f->C_GenerateKeyPair(h, &make_rsa, pub, COUNT(pub), priv, COUNT(priv), &public, &rsa), "RSA key");
	must(make_pair(h, yes, &ec), "EC key");
	must(f->C_GenerateKey(h, &make_key, key, COUNT(key), &aes), "AES key");
	must(f->C_GenerateKey(h, &make_mac, mac, COUNT(mac), &generic), "HMAC key");
}

static double microseconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void *work(void *argument)
{
	struct worker *w = argument;
	w->count = w->kept = 0;
	while (!atomic_load(&stop)) {
		double start = microseconds();
		w->rv = w->operation(w);
		if (w->rv != CKR_OK)
			return NULL;
		w->count++;
		if (w->kept < SAMPLES)
			w->took[w->kept++] = (float)(microseconds() - start);
	}
	return NULL;
}

static int by_size(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;
	return (x > y) - (x < y);
}

static void report(const char *name, struct worker *w, int threads, double seconds)
{
	static float all[(size_t)SAMPLES * MAX_THREADS];
	unsigned long count = 0;
	size_t n = 0;
	for (int i = 0; i < threads; i++) {
		if (w[i].rv != CKR_OK) {
			printf("%s refused 0x%lx\n", name, w[i].rv);
			return;
		}
		memcpy(all + n, w[i].took, w[i].kept * sizeof *all);
		n += w[i].kept;
		count += w[i].count;
	}
	qsort(all, n, sizeof *all, by_size);
	printf("%s %.0f %.0f %.0f\n", name, (double)count / seconds, (double)all[n / 2], (double)all[n * 99 / 100]);
}

/* measure runs one operation in all threads, each in a new session. */
static void measure(const char *name, CK_RV (*operation)(struct worker *), struct worker *w, int threads, long ms)
{
	struct timespec time = {ms / 1000, ms % 1000 * 1000000};
	atomic_store(&stop, false);
	for (int i = 0; i < threads; i++) {
		w[i].operation = operation;
		must(f->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &w[i].session), "session");
	}
	double start = microseconds();
	for (int i = 0; i < threads; i++)
		if (pthread_create(&w[i].thread, NULL, work, &w[i]) != 0)
			exit(1);
	nanosleep(&time, NULL);
	atomic_store(&stop, true);
	for (int i = 0; i < threads; i++)
		pthread_join(w[i].thread, NULL);
	report(name, w, threads, (microseconds() - start) / 1e6);
	for (int i = 0; i < threads; i++)
		f->C_CloseSession(w[i].session);
}

int main(int argc, char **argv)
{
	static struct worker workers[MAX_THREADS];
	CK_SESSION_HANDLE h;
	CK_C_INITIALIZE_ARGS locking = {.flags = CKF_OS_LOCKING_OK};
	int threads = argc == 5 || argc == 6 ? atoi(argv[3]) : 0;
	if (threads < 1 || threads > MAX_THREADS) {
		fprintf(stderr, "usage: modulebench MODULE PIN THREADS MILLISECONDS [OPERATION]\n");
		return 2;
	}
	f = load(argv[1]);
	must(f->C_Initialize(&locking), "C_Initialize");
	slot = first_slot(f);
	must(f->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &h), "session");
	must(f->C_Login(h, CKU_USER, (CK_BYTE *)argv[2], strlen(argv[2])), "C_Login");
	prepare(h);
	for (int i = 0; i < threads; i++) {
		workers[i].nonce[1] = (CK_ULONG)i;
		if ((workers[i].took = malloc(SAMPLES * sizeof(float))) == NULL)
			return 1;
	}
	for (size_t i = 0; i < COUNT(operations); i++)
		if (argc == 5 || strcmp(argv[5], operations[i].name) == 0)
			measure(operations[i].name, operations[i].operation, workers, threads, atol(argv[4]));
	must(f->C_Finalize(NULL), "C_Finalize");
	return 0;
}
